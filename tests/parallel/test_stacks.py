"""What the stacks of other threads are taken for."""

import subprocess
import sys
from types import SimpleNamespace

from parallel import stacks


def test_a_thread_between_two_lines_waits_for_nobody() -> None:
    frame = SimpleNamespace(f_code=SimpleNamespace(co_filename=__file__), f_lineno=None)
    assert not stacks._waits(frame)  # type: ignore[arg-type]


def test_a_process_whose_lock_is_held_tells_where() -> None:
    program = "import re\nfrom parallel import stacks\nstacks.tell_if_held(0.2)\nre.match(r'(a+)+$', 'a' * 64 + 'b')"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = ""
        while "in match" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
    finally:
        process.kill()
        process.wait()
