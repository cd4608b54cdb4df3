"""`triptych chat`: the terminal's side of a conversation. Answers go to stdout, everything else to stderr."""

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from io import TextIOWrapper
from pathlib import Path

from launch.answering.conversation import Conversation

HELP = """/image PATH   show a picture with the next message
/video PATH   show a clip with the next message
/clear        forget the conversation
/quit         end, as Ctrl-D does
/help         this
Ctrl-C stops an answer."""
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?")  # a message may well begin with a path


def talk(conversation: Conversation) -> int:
    """Take turns until the input ends: with a prompt in a terminal, else one turn a line. Returns the exit status.

    In a terminal a turn that fails is told and the conversation goes on; from a pipe it raises ValueError.
    """
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a file's name may be any bytes; text is mended in answer()
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if not _turn(conversation, line.strip()):
                break
        return 0
    loaded = conversation.loaded
    millions = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    _note(f"{loaded.path}: {millions:,.1f} M parameters on {loaded.model.device}; /help lists commands, Ctrl-D ends")
    for line in _typed():
        try:
            if not _turn(conversation, line.strip()):
                break
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as fault:
            _note(f"triptych: {fault}")
        except KeyboardInterrupt:
            print()
    return 0


def say(conversation: Conversation, text: str) -> None:
    """Ask and print the answer as it comes."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 must not end the conversation
    with closing(conversation.answer(text)) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
    print(flush=True)
    if conversation.cut is not None:
        _note(f"({conversation.cut})")


def _turn(conversation: Conversation, line: str) -> bool:
    """One line: a command, or what to say. False when it ends the conversation."""
    command = _COMMAND.fullmatch(line)
    if command is None:
        if line:
            say(conversation, line)
        return True
    name, rest = command[1], (command[2] or "").strip()
    if name in ("image", "video"):
        if not rest:
            raise ValueError(f"/{name} needs the path of a file")
        conversation.show("image" if name == "image" else "video", _unquoted(rest))
    elif name == "clear":
        conversation.clear()
    elif name == "help":
        _note(HELP)
    elif name != "quit":
        raise ValueError(f"there is no command /{name}; /help lists them")
    return name != "quit"


def _unquoted(path: str) -> str:
    """A path as it is typed, or pasted by a terminal with its quotes or its escaped spaces."""
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        return path[1:-1]
    return str(Path(path.replace("\\ ", " ")).expanduser())


def _typed() -> Iterator[str]:
    with suppress(ImportError):
        importlib.import_module("readline")  # input() then has a history and can be edited
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            _note("(Ctrl-D ends)")
            continue
        yield line


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
