"""What `triptych checkpoint verify` and `repair` make of checkpoints with planted damage, counted."""

import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.checkpoints.repair import faults, repair
from tests.harness.copies import LAST_NORM, MERGER, PATCHES, bits_apart
from tests.harness.damaged import change_values, forget, save_trained, store_under
from tests.harness.memory import peak_memory
from train.checkpoint import commits
from train.checkpoint.commits import open_commit
from train.checkpoint.load import find_commit, read_tensors
from train.config import RunConfig
from train.resolve import compose

EMBEDDING = "language.embedding.word_embeddings.weight"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A way to spoil a checkpoint, and what has to be said of it."""

    tensor: str
    kind: str
    spoil: Callable[[Path, str], object]
    """Of the checkpoint at a path, the tensor of this name."""
    curable: bool = False


def _put(value: float) -> Callable[[Path, str], object]:
    def change(tensor: Tensor) -> None:
        tensor.view(-1)[[0, 3, 41]] = value

    return lambda path, name: change_values(path, name, change)


def _scaled(path: Path, name: str) -> None:
    change_values(path, name, lambda tensor: tensor.mul_(1.25))


def _one_bit(path: Path, name: str) -> None:
    change_values(path, name, lambda tensor: tensor.view(-1)[7:8].view(torch.int16).bitwise_xor_(1))


MENDED = (
    Damage(tensor=MERGER, kind="unlike its master", spoil=_scaled, curable=True),
    Damage(tensor="merger.fc2.bias", kind="unlike its master", spoil=_one_bit, curable=True),
    Damage(tensor=EMBEDDING, kind="unlike its master", spoil=_scaled, curable=True),
    Damage(tensor=LAST_NORM, kind="not finite", spoil=_put(math.nan), curable=True),
)
"""Of a stage 3 checkpoint in bf16: what masters make right again."""
REFUSED = (
    Damage(tensor=PATCHES, kind="not finite", spoil=_put(math.inf)),
    Damage(tensor=f"optimizer.master.{MERGER}", kind="not finite", spoil=_put(math.nan)),
    Damage(tensor=f"optimizer.exp_avg.{LAST_NORM}", kind="not finite", spoil=_put(math.nan)),
    Damage(tensor=f"optimizer.exp_avg_sq.{MERGER}", kind="negative", spoil=_put(-0.5)),
    Damage(tensor=f"optimizer.master.{MERGER}", kind="missing", spoil=forget),
    Damage(tensor=f"optimizer.exp_avg.{EMBEDDING}", kind="missing", spoil=forget),
    Damage(tensor=LAST_NORM, kind="missing", spoil=forget),
    Damage(
        tensor="language.output_layer.weight",
        kind="unknown",
        spoil=lambda path, name: store_under(path, EMBEDDING, name),
    ),
)
"""What nothing makes right: the checkpoint before has to serve."""


def missaid(run_dir: Path, scratch: Path, damages: tuple[Damage, ...]) -> int:
    """How many of `damages`, each planted alone in a copy of a run, are not said to be exactly what they are.

    That is tensor, kind, number of elements, largest difference, and whether a repair mends it.
    """
    wrong = 0
    for number, damage in enumerate(damages):
        path = commits.attempts(shutil.copytree(run_dir, scratch / str(number)))[0].path
        before = _read(path, damage.tensor)
        damage.spoil(path, damage.tensor)
        elements, largest = _expected(damage.kind, before, _read(path, damage.tensor))
        found = faults(open_commit(path))
        said = [(fault.tensor, fault.kind, fault.elements, fault.curable) for fault in found]
        good = said == [(damage.tensor, damage.kind, elements, damage.curable)]
        wrong += not (good and math.isclose(found[0].largest, largest, rel_tol=1e-12))
        shutil.rmtree(scratch / str(number))
    return wrong


def _read(path: Path, name: str) -> Tensor | None:
    reader = read_tensors(path)
    return reader.read(name) if name in reader.names() else None


def _expected(kind: str, before: Tensor | None, after: Tensor | None) -> tuple[int, float]:
    """(elements, largest difference), from what was there before and is there now."""
    if before is None or after is None:
        return 0, 0.0
    if kind == "unlike its master":
        return int((before != after).sum()), float((before.double() - after.double()).abs().max())
    if kind == "negative":
        return int((after < 0).sum()), -float(after.min())
    return int((~after.isfinite()).sum()), math.inf


@dataclass(kw_only=True)
class Repaired:
    """Counts that should be none."""

    tensors: int
    """With other bits in the repaired checkpoint than in the one that was never damaged."""
    state: int
    """Entries of state.json beside the note, and the recipe, that are not as they were."""
    old: int
    """Files of the damaged one that changed, and checkpoints that went."""
    passed_over: int
    """Whether the run would go on from another one than the repaired."""
    unnoted: int
    """Mended weights that state.json does not name."""
    left: int
    """Faults that the repaired one still has."""


def repaired(run_dir: Path, target: Path) -> Repaired:
    """Spoil a copy of a run at `target` in every way that can be mended, and repair it."""
    path = commits.attempts(shutil.copytree(run_dir, target))[0].path
    whole = commits.attempts(run_dir)[0].path
    for damage in MENDED:
        damage.spoil(path, damage.tensor)
    damaged = {file.name: file.read_bytes() for file in path.iterdir()}
    others = {attempt.path for attempt in commits.attempts(target)}
    new, _ = repair(target)
    assert new is not None
    was, now = open_commit(whole), open_commit(new)
    kept = [key for key in was.state if key != "saved_at"]
    note = (now.state.get("repaired") or [{"from": None, "found": []}])[-1]
    named = {line.split(":")[0] for line in note["found"]}
    return Repaired(
        tensors=_tensors_apart(whole, new),
        state=sum(was.state[key] != now.state.get(key) for key in kept) + (was.recipe != now.recipe),
        old=(
            sum(not (path / name).exists() or (path / name).read_bytes() != raw for name, raw in damaged.items())
            + len(others - {attempt.path for attempt in commits.attempts(target)})
        ),
        passed_over=int(find_commit(target).path != new),
        unnoted=sum(damage.tensor not in named for damage in MENDED) + (note["from"] != path.name),
        left=len(faults(now)),
    )


def _tensors_apart(one: Path, other: Path) -> int:
    left, right = read_tensors(one), read_tensors(other)
    apart = len(set(left.names()) ^ set(right.names()))
    for name in set(left.names()) & set(right.names()):
        same = left.shape(name) == right.shape(name) and left.dtype(name) == right.dtype(name)
        apart += not same or bits_apart(left.read(name), right.read(name)) > 0
    return apart


def wrongly_taken(run_dir: Path, scratch: Path) -> int:
    """How many checkpoints that cannot be mended are repaired, or refused without the tensor's name, or leave a trace;
    and whole ones that are written again."""
    wrong = 0
    for number, damage in enumerate((None, *REFUSED)):
        run = Path(shutil.copytree(run_dir, scratch / str(number)))
        path = commits.attempts(run)[0].path
        if damage is not None:
            damage.spoil(path, damage.tensor)
            MENDED[1].spoil(path, MENDED[1].tensor)  # what could be mended is left too
        before = sorted(run.rglob("*"))
        try:
            new, _ = repair(run)
            wrong += damage is not None or new is not None
        except ValueError as error:
            wrong += damage is None or damage.tensor not in str(error)
        wrong += sorted(run.rglob("*")) != before
        shutil.rmtree(run)
    broken = Path(shutil.copytree(run_dir, scratch / "broken"))
    _flip_a_bit(commits.attempts(broken)[0].path)
    try:
        repair(broken)
        wrong += 1
    except ValueError as error:
        wrong += "crc32c" not in str(error)
    return wrong


def _flip_a_bit(path: Path) -> None:
    file = max(path.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


# --- one process: kills and memory ------------------------------------------------------------------------------


def killed_repairs(scratch: Path) -> tuple[int, int]:
    """(wrong, all) repairs killed at a wait for the disk, after which the run goes on from neither the old checkpoint
    nor a whole new one."""
    old = save_trained(_run(scratch / "killed", SMALL), 1)
    _scaled(old, MERGER)
    run_dir = old.parent.parent
    wrong = 0
    for cuts, stop in enumerate(range(1, 30)):
        ended = _killed_at(stop, run_dir)
        chosen = _gone_on_from(run_dir)
        if ended:
            return wrong + (chosen in (old, None)), cuts
        wrong += chosen is None
    raise AssertionError("no repair came to its end")


def _gone_on_from(run_dir: Path) -> Path | None:
    """The checkpoint that a run would go on from; None if that is one which no repair has made whole."""
    try:
        commit = find_commit(run_dir, tell=lambda _: None)
        whole = "repaired" not in commit.state or not faults(commit)
    except Exception:
        return None
    return commit.path if whole else None


def _killed_at(stop: int, run_dir: Path) -> bool:
    """Repair in a process that kills itself at the `stop`-th wait for the disk; whether it came to its end."""
    child = os.fork()
    if child == 0:
        calls = iter(range(1, stop))
        os.fsync = lambda _: None if next(calls, None) else os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
        try:
            repair(run_dir)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.WIFEXITED(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


@dataclass(kw_only=True)
class RepairCost:
    """Bytes."""

    verify: int
    """Growth of resident memory while every tensor is looked at."""
    repair: int
    checkpoint: int
    """All of its tensors."""
    largest: int
    """The largest of them."""


def repair_cost(scratch: Path) -> RepairCost:
    """Memory that looking at a checkpoint takes, and writing it anew, against what lies in it."""
    path = save_trained(_run(scratch / "large", LARGE), 1)
    _scaled(path, MERGER)
    small = save_trained(_run(scratch / "small", SMALL), 1)
    _scaled(small, MERGER)
    repair(small)  # what is imported at first use is no tensor's
    reader = read_tensors(path)
    sizes = [math.prod(reader.shape(name)) * reader.dtype(name).itemsize for name in reader.names()]
    with peak_memory() as verify:
        assert faults(open_commit(path))
    with peak_memory() as mend:
        repair(path.parent.parent)
    return RepairCost(verify=verify.growth, repair=mend.growth, checkpoint=sum(sizes), largest=max(sizes))


SMALL = {"hidden_size": 64, "ffn_size": 64, "vocab_size": 97}
LARGE = {"hidden_size": 512, "ffn_size": 256, "vocab_size": 18001, "tie_embeddings": False}
"""Nearly all of it is embedding and head. Their masters are of 37 MB each: malloc gives back at once what is larger
than 32 MiB, and what it keeps of smaller tensors would be taken for ours."""


def _run(run_dir: Path, sizes: dict[str, Any]) -> RunConfig:
    run = compose("quickstart_stage2")
    assert run.model.vision is not None
    language = replace(run.model.language, num_layers=2, head_size=32, **sizes)
    model = replace(run.model, vision=replace(run.model.vision, depth=1), language=language)
    return replace(run, run_dir=str(run_dir), model=model)
