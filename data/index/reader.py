"""Readers of an index: processes that take shards one after the other, each as fast as it can.

They import no torch and hold no lock: a reader that is killed costs the shard that it was at, which another one takes.
Requests and replies are lines of JSON.
"""

import gc
import json
import logging
import select
import signal
import subprocess
import sys
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from data.child import end_child, finish_child, keep_stdout, leave_with_parent, start_child
from data.errors import FormatError, MismatchError, ShardFault, StoreError
from data.index.part import IndexSettings
from data.index.shard import ShardIndexer
from data.store.store import StoredObject

log = logging.getLogger(__name__)

QUIET_OBJECTS = 200_000  # more than a batch of samples is made of
MOST_DEATHS = 3  # of readers at one shard, before it is the shard's fault
_FAULTS = {fault.__name__: fault for fault in (FormatError, MismatchError, ShardFault, StoreError, ValueError, OSError)}


def make_parts(settings: IndexSettings, shards: Sequence[StoredObject], readers: int) -> Iterator[tuple[str, int]]:
    """Make the part of every shard in `readers` processes; (shard, samples) of each that is done, in any order.

    Raises what a reader raises: FormatError and the like, RuntimeError for a shard at which readers die.
    """
    waiting = deque(shards)
    deaths: Counter[str] = Counter()
    busy: dict[int, tuple[subprocess.Popen[bytes], StoredObject]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < readers:
                child, shard = _start(settings), waiting.popleft()
                busy[_ask(child, shard)] = child, shard
            for descriptor in select.select(list(busy), [], [])[0]:
                child, shard = busy[descriptor]
                assert child.stdout is not None
                line = child.stdout.readline()
                if line:
                    yield shard.name, _samples(json.loads(line))
                del busy[descriptor]
                if line and waiting:
                    shard = waiting.popleft()
                    busy[_ask(child, shard)] = child, shard
                    continue
                if line:
                    finish_child(child)
                else:
                    end_child(child)
                    deaths[shard.name] += 1
                    if deaths[shard.name] == MOST_DEATHS:
                        raise RuntimeError(_death(child, shard))
                    log.warning("%s; another one starts over with it", _death(child, shard))
                    waiting.appendleft(shard)
    finally:
        for child, _ in busy.values():
            end_child(child)


def _start(settings: IndexSettings) -> "subprocess.Popen[bytes]":
    return start_child("data.index.reader", settings.to_json())


def _ask(child: "subprocess.Popen[bytes]", shard: StoredObject) -> int:
    """Give a reader its next shard; the descriptor on which it will answer."""
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(json.dumps(asdict(shard)).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # its stdout says so as well
    return child.stdout.fileno()


def _death(child: "subprocess.Popen[bytes]", shard: StoredObject) -> str:
    return f"a reader ended at shard {shard.name} with exit code {child.returncode} (-9 may be for want of memory)"


def _samples(reply: dict) -> int:
    if "fault" in reply:
        _raise(reply["fault"], reply["text"])
    return reply["samples"]


def _raise(fault: str, text: str) -> NoReturn:
    raise _FAULTS.get(fault, RuntimeError)(text)


def main() -> None:
    """Serve until the parent has gone."""
    leave_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A batch's objects go by their reference counts; the collector, passing over them, took a fifth of the time.
    gc.set_threshold(QUIET_OBJECTS)
    replies = keep_stdout()
    indexer = None
    settings = IndexSettings.from_json(sys.argv[1])
    try:
        for line in sys.stdin.buffer:
            try:
                indexer = indexer or ShardIndexer(settings)
                reply: dict[str, Any] = {"samples": indexer.make(StoredObject(**json.loads(line)))}
            except Exception as error:
                named = next((name for name, fault in _FAULTS.items() if isinstance(error, fault)), None)
                if named is None:
                    traceback.print_exc()
                reply = {"fault": named, "text": str(error)}
            replies.write(json.dumps(reply).encode() + b"\n")
    except BrokenPipeError:
        pass  # the parent has gone; parts that are finished stay
    finally:
        if indexer is not None:
            indexer.close()


if __name__ == "__main__":
    main()
