"""What the stacks of other threads are taken for."""

from types import SimpleNamespace

from parallel import stacks


def test_a_thread_between_two_lines_waits_for_nobody() -> None:
    frame = SimpleNamespace(f_code=SimpleNamespace(co_filename=__file__), f_lineno=None)
    assert not stacks._waits(frame)  # type: ignore[arg-type]
