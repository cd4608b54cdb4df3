"""Find the newest checkpoint that can be believed, and load it on any layout.

Every rank of the world calls these functions; a failure on one is raised on all, and a rank that vanished is noticed by
the group's own time limit. Without an initialised torch.distributed they serve one process.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor

from train.agreement import gathered, on_first_rank, rank_in, size_of
from train.checkpoint import commits
from train.checkpoint.boxes import Chunk
from train.checkpoint.commits import Attempt, Commit
from train.checkpoint.entries import Optimizer, part_of, state_held, weights_held
from train.checkpoint.tensors import TensorReader, read_header

if TYPE_CHECKING:
    from model.canonical import Box

log = logging.getLogger(__name__)


def find_commit(
    where: str | Path, *, tell: Callable[[str], None] = log.warning, group: dist.ProcessGroup | None = None
) -> Commit:
    """The newest sealed checkpoint of a run whose digests hold; the ranks share the reading.

    Args:
        where: a run's folder, or one checkpoint folder, which is then the only candidate.
        tell: hears, on rank 0, why a newer one was passed over.

    Raises:
        ValueError: there is none; says what is wrong with each.
    """
    reasons: list[str] = []
    rank, size = rank_in(group), size_of(group)

    def note(reason: str) -> None:
        reasons.append(reason)
        if rank == 0:
            tell(reason)

    def check(path: Path) -> list[str]:
        shares = gathered(f"verifying {path.name}", lambda: commits.problems(path, rank, size), group)
        return list(dict.fromkeys(problem for share in shares for problem in share))

    tried: list[Attempt] = []

    def untried() -> list[Attempt]:
        found = on_first_rank(f"listing {where}", lambda: commits.attempts(where), group)
        return [attempt for attempt in found if attempt not in tried]

    # A run that trains may delete all that were listed while they are read, after it has sealed others.
    while candidates := untried():
        if chosen := commits.choose(candidates, check, note):
            return gathered("reading its state", lambda: commits.open_commit(chosen.path), group)[rank]
        tried += candidates
    why = "; ".join(reasons) or "there is no checkpoint folder"
    raise ValueError(f"{where} has no checkpoint that can be used: {why}")


def open_tensors(commit: Commit, group: dist.ProcessGroup | None = None) -> TensorReader:
    """The tensors of a verified checkpoint; of its files' headers each rank reads a share."""
    rank, size = rank_in(group), size_of(group)
    mine = sorted(commit.tensor_files.items())[rank::size]
    shares = gathered("reading headers", lambda: [box for name, path in mine for box in read_header(path, name)], group)
    headers = [box for share in shares for box in share]
    held: list[TensorReader] = []
    gathered("comparing boxes", lambda: held.append(TensorReader(commit.tensor_files, headers)), group)
    return held[0]


def load_weights(
    commit: Commit,
    parameters: Mapping[str, Tensor],
    boxes: "Mapping[str, Box]",
    *,
    parts: Sequence[str] | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Copy weights into this rank's parameters in place, whatever layout wrote them.

    Args:
        parts: which of vision, merger, language to load; None loads every parameter.

    Raises:
        CheckpointError: tensors that the checkpoint lacks or has in another shape; all of them are named.
    """
    held = weights_held(parameters, boxes)
    _load(commit, [chunk for chunk in held if parts is None or part_of(chunk.name) in parts], group)


def load_optimizer(
    commit: Commit, boxes: "Mapping[str, Box]", optimizer: Optimizer, *, group: dist.ProcessGroup | None = None
) -> None:
    """Copy masters and moments into this rank's fragments in place and set the number of steps taken.

    Raises:
        CheckpointError: as `load_weights`; a checkpoint of a stage that trained other parts lacks what this one needs.
    """
    _load(commit, state_held(optimizer.fragments(), boxes, None), group)
    optimizer.loaded(commit.state["steps_taken"])


def _load(commit: Commit, wanted: Iterable[Chunk], group: dist.ProcessGroup | None) -> None:
    chunks = list(wanted)
    reader = open_tensors(commit, group)
    gathered("comparing names and shapes", lambda: reader.check({chunk.name: chunk.whole for chunk in chunks}), group)
    gathered(f"reading {commit.path.name}", lambda: reader.read_into(chunks), group)


def read_tensors(path: Path) -> TensorReader:
    """The tensors of one checkpoint folder that was verified before, read by this process alone."""
    return TensorReader(commits.open_commit(path).tensor_files)
