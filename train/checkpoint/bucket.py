"""What lies at a prefix that checkpoints are uploaded to: folders as a run has them, under the same names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.store.store import StoredObject
from train.checkpoint.commits import COMMIT, LEFT_BEHIND, step_of

if TYPE_CHECKING:
    from data.store.oss import OssStore


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteAttempt:
    """One checkpoint folder in a bucket, sealed or not."""

    name: str
    step: int
    sealed: bool
    left: bool = False
    """Left behind."""


def found_in(tree: Sequence[StoredObject]) -> list[RemoteAttempt]:
    """The checkpoints among the objects of a prefix, newest first: by step, then by the time of the seal; those that
    were left behind come last."""
    seals = {each.name.partition("/")[0]: each.modified or 0.0 for each in tree if each.name.endswith(f"/{COMMIT}")}
    left = {each.name.partition("/")[0] for each in tree if each.name.endswith(f"/{LEFT_BEHIND}")}
    found = []
    for name in {each.name.partition("/")[0] for each in tree}:
        step = step_of(name)
        if step is not None:
            found.append((name not in left, step, seals.get(name, 0.0), name))
    return [
        RemoteAttempt(name=name, step=step, sealed=name in seals, left=not current)
        for current, step, _, name in sorted(found, reverse=True)
    ]


def whole(store: "OssStore", name: str) -> bytes:
    """A small object. Raises StoreError."""
    return store.read_range(name, 0, store.size(name))
