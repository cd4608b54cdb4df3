"""Decoders that hang, die or lie: the script of the child, changed."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from data.visual import decode_child

LOOP = "        while (message := read_message(sys.stdin.buffer)) is not None:\n"


def change_child(old: str, new: str) -> Callable[[], None]:
    """Children started from now on run a script with `new` in the place of `old`; returns how to mend it."""
    before = str(decode_child.__file__)
    source = Path(before).read_text()
    assert old in source, old
    folder = tempfile.TemporaryDirectory(prefix="triptych-child-")
    script = Path(folder.name) / "child.py"
    script.write_text(source.replace(old, new, 1))
    decode_child.__file__ = str(script)

    def mend() -> None:
        decode_child.__file__ = before
        folder.cleanup()

    return mend


def before_each_answer(body: str) -> tuple[str, str]:
    """(old, new) for `change_child`: `body` runs first; in it `decoder` is a name and `message[1]` the clip."""
    return LOOP, LOOP + "".join(f"            {line}\n" for line in body.splitlines())


@contextlib.contextmanager
def changed_child(old: str, new: str) -> Iterator[None]:
    """`change_child` for a while."""
    mend = change_child(old, new)
    try:
        yield
    finally:
        mend()
