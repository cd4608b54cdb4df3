"""What lies in the files of wandb and TensorBoard, read by their own packages, but for the frame of wandb's."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_tensorboard(folder: Path) -> tuple[dict[str, dict[int, float]], dict[str, str], dict[str, tuple[int, int]]]:
    """(numbers by name and step, texts by name, height and width of pictures by name)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0: all of a kind, where it would keep a sample of them.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    numbers = {name: {event.step: event.value for event in events.Scalars(name)} for name in tags["scalars"]}
    texts = {name: events.Tensors(name)[-1].tensor_proto.string_val[0].decode() for name in tags["tensors"]}
    pictures = {name: (events.Images(name)[-1].height, events.Images(name)[-1].width) for name in tags["images"]}
    return numbers, texts, pictures


def read_wandb(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(every row that was logged offline, the config) of the only run below `folder`."""
    (path,) = folder.glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while not (records := [_record(data) for data in _framed(path.read_bytes())])[-1].HasField("exit"):
        assert time.monotonic() < deadline, "wandb's own process has not written the end of the run"
        time.sleep(0.1)
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for record in records:
        if record.HasField("history"):
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return history, config


def _record(data: bytes) -> Any:
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    return record


_BLOCK, _HEAD = 32768, struct.Struct("<IHB")
_LAST = (1, 4)  # a whole record, and the end of one that was cut


def _framed(data: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format, behind wandb's 7 bytes; no Python of wandb 0.31 reads it any more."""
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place < len(data):
        if _BLOCK - place % _BLOCK < _HEAD.size:  # a block's rest that has no room for a head is filled up
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        parts += data[place : place + length]
        place += length
        if kind in _LAST:
            yield parts
            parts = b""
