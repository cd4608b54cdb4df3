"""Save and load one run's weights and optimizer, on any layout, through `torch.distributed.checkpoint` (DCP).

Tensors are stored under canonical names (model/canonical.py) with the shapes of the whole model:

    language.decoder.layers.3.mlp.linear_fc1.weight                     in the model's dtype
    optimizer.master.<name>  optimizer.exp_avg.<name>  optimizer.exp_avg_sq.<name>      fp32, trainable tensors only

Every rank of a world calls `save_commit`, `find_commit`, `load_weights` and `load_optimizer`; a failure on one rank is
raised on all of them, and a rank that vanished is noticed by the group's own time limit. Without an initialised
torch.distributed the same functions serve one process.
"""

import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch.distributed as dist
from torch import Tensor

from train import commits
from train.agreement import gathered, on_first_rank, rank_in, size_of
from train.boxes import BoxTensor, Chunk, fragment_chunks
from train.commits import Commit
from train.tensor_store import TensorReader, write_one_by_one, write_tensors

if TYPE_CHECKING:
    from model.canonical import Box
    from parallel.zero import Fragment

log = logging.getLogger(__name__)
STATE_TENSORS = ("master", "exp_avg", "exp_avg_sq")
MODEL_PARTS = ("vision", "merger", "language")
_VERSIONS = ("torch", "megatron-core", "deepspeed", "transformers", "numpy")


class Optimizer(Protocol):
    """What is asked of parallel.zero.ZeroOptimizer."""

    @property
    def steps_taken(self) -> int: ...

    def fragments(self) -> "list[Fragment]": ...

    def loaded(self, steps_taken: int) -> None: ...


def save_commit(
    run_dir: str | Path,
    step: int,
    parameters: Mapping[str, Tensor],
    boxes: "Mapping[str, Box]",
    optimizer: Optimizer | None,
    state: Mapping[str, Any],
    recipe_text: str,
    *,
    tp_rank: int,
    keep: int,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write one checkpoint and seal it. Returns its folder.

    Args:
        run_dir: the run's folder; the checkpoint goes to run_dir/checkpoints/.
        step: optimizer steps of the stage that are done.
        parameters, boxes: local parameters of this rank and the box of each, by local name.
        optimizer: None for a stage that keeps none.
        state: what JSON can hold: tokens seen, data cursor, plan fingerprint, seeds. `step`, `steps_taken` and the
            environment's versions are added.
        recipe_text: the resolved recipe, YAML.
        tp_rank: weights and state that tensor ranks hold alike are written from tensor rank 0, all of one rank.
        keep: sealed checkpoints to leave, this one among them.
        group: the ranks that save together; None is the world.

    Raises:
        CheckpointError: a rank could not write. The folder stays, unsealed.
    """
    path = on_first_rank("making a checkpoint folder", lambda: commits.new_attempt(run_dir, step), group)
    told = dict(state) | {
        "format": 1,
        "step": step,
        "steps_taken": optimizer.steps_taken if optimizer else None,
        "environment": environment(),
        "saved_at": _now(),
    }
    fragments = optimizer.fragments() if optimizer else []
    write_tensors(path, _entries(parameters, boxes, fragments, writer_tp_rank=tp_rank), group)
    rank = rank_in(group)
    shares = gathered(f"writing {path.name}", lambda: _finish_own_files(path, rank, told, recipe_text), group)
    digests = {name: value for share in shares for name, value in share.items()}

    def finish() -> None:
        commits.seal(path, digests)
        commits.prune(run_dir, keep, path)

    on_first_rank(f"sealing {path.name}", finish, group)
    return path


def rewrite_commit(commit: Commit, make: Callable[[str], Tensor], note: Mapping[str, Any]) -> Path:
    """Write a checkpoint anew beside itself and seal it, in one process, tensor by tensor. Returns its folder.

    The new one has the same step and is sealed later, so the run goes on from it. The old one stays, and so does every
    other: nothing is pruned.

    Args:
        commit: lies in a run's checkpoints folder.
        make: gives each tensor by its stored name, whole and on CPU, in the shape and dtype that `commit` has it in.
        note: goes into state.json, over what `commit` has there.

    Raises:
        CheckpointError: what `make` raised, or a file that could not be written. The folder stays, unsealed.
    """
    path = commits.new_attempt(commit.path.parent.parent, commit.step)
    write_one_by_one(path, TensorReader(commit.path), make)
    told = commit.state | dict(note) | {"saved_at": _now()}
    commits.seal(path, _finish_own_files(path, 0, told, commit.recipe))
    return path


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

    candidates = on_first_rank(f"listing {where}", lambda: commits.attempts(where), group)
    chosen = commits.choose(candidates, check, note)
    if chosen is None:
        why = "; ".join(reasons) or "there is no checkpoint folder"
        raise ValueError(f"{where} has no checkpoint that can be used: {why}")
    return gathered("reading its state", lambda: commits.open_commit(chosen.path), group)[rank]


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
    wanted = {name: box for name, box in boxes.items() if parts is None or box.name.partition(".")[0] in parts}
    _load(commit, _entries(parameters, wanted, [], writer_tp_rank=None), group)


def load_optimizer(
    commit: Commit, boxes: "Mapping[str, Box]", optimizer: Optimizer, *, group: dist.ProcessGroup | None = None
) -> None:
    """Copy masters and moments into this rank's fragments in place and set the number of steps taken.

    Raises:
        CheckpointError: as `load_weights`; a checkpoint of a stage that trained other parts lacks what this one needs.
    """
    _load(commit, _entries({}, boxes, optimizer.fragments(), writer_tp_rank=None), group)
    optimizer.loaded(commit.state["steps_taken"])


def environment() -> dict[str, str]:
    """Versions that a later reader of a checkpoint may need to know."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def state_name(kind: str, name: str) -> str:
    """What one of STATE_TENSORS of a weight is stored as."""
    return f"optimizer.{kind}.{name}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _finish_own_files(path: Path, rank: int, told: dict[str, Any], recipe_text: str) -> dict[str, dict[str, Any]]:
    """Digests of the files that this rank wrote; rank 0 first writes those that hold no tensors."""
    names = [file.name for file in path.glob(f"__{rank}_*")]
    if rank == 0:
        commits.write_text(path / commits.STATE, json.dumps(told, indent=1))
        commits.write_text(path / commits.RECIPE, recipe_text)
        names += [commits.STATE, commits.RECIPE, ".metadata"]
    # Each rank vouches for its own files: on a shared file system rank 0 may not see them yet.
    return {name: commits.digest(path / name) for name in names}


def _entries(
    parameters: Mapping[str, Tensor],
    boxes: "Mapping[str, Box]",
    fragments: "Sequence[Fragment]",
    writer_tp_rank: int | None,
) -> dict[str, BoxTensor]:
    """Checkpoint entries of this rank. `writer_tp_rank` None is for reading: every box, replicas included."""

    def takes_part(box: "Box") -> bool:
        # Parameters that fill an empty optimizer group belong to no part of the model and are no one's state.
        if box.name.partition(".")[0] not in MODEL_PARTS:
            return False
        return writer_tp_rank is None or (box.owner and (box.is_split or writer_tp_rank == 0))

    entries: dict[str, BoxTensor] = {}
    for local_name, parameter in parameters.items():
        box = boxes.get(local_name)
        if box is not None and takes_part(box):
            chunk = Chunk(offset=box.offset, data=box.view(parameter))
            entries[box.name] = BoxTensor(box.global_shape, [chunk], parameter.dtype)
    for fragment in fragments:
        box = boxes[fragment.param_name]
        if not takes_part(box):
            continue
        for kind in STATE_TENSORS:
            data = fragment.tensors[kind].detach()
            chunks = fragment_chunks(box.offset, box.shape, fragment.start, data)
            entries[state_name(kind, box.name)] = BoxTensor(box.global_shape, chunks, data.dtype)
    return entries


def _load(commit: Commit, entries: dict[str, BoxTensor], group: dist.ProcessGroup | None) -> None:
    def open_and_check() -> TensorReader:
        reader = TensorReader(commit.path)
        reader.check({name: tuple(entry.shape) for name, entry in entries.items()})
        return reader

    # Asked first and of all ranks: DCP would stop at one name, in an exception that wraps another.
    held: list[TensorReader] = []
    gathered("comparing names and shapes", lambda: held.append(open_and_check()), group)
    held[0].read_into(entries, group)
