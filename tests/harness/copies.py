"""Copies of one weight on tensor ranks, made to part: what parallel/replicas.py says of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.replicas import have_parted, largest_drift, mean_copy
from parallel.world import model_parallel, pick_device
from tests.harness import layouts
from tests.harness.layouts import NUM_ROWS, Stage
from tests.harness.rows import random_step
from tests.harness.runs import model_config
from train.state import TrainState
from train.step import train_step

MERGER, LAST_NORM, PATCHES = "merger.fc1.weight", "language.decoder.final_layernorm.weight", "vision.patch_embed.weight"
FIRST_NORM, VISION_BIAS = "merger.norm.weight", "vision.blocks.layers.0.self_attention.linear_proj.bias"
WATCHED = (MERGER, LAST_NORM, PATCHES, FIRST_NORM, VISION_BIAS)
FACTOR = 1.25
DRIFT = 1 - 1 / FACTOR
"""Of a copy that is FACTOR times the others."""


def start(parallel: ParallelConfig, stage: str, precision: str, groups: Groups, first_step: int = 0) -> Stage:
    """A stage whose rows are those from `first_step` on, so that a resumed run can follow one that went on."""
    model = model_config()
    steps = [random_step(7 + step, NUM_ROWS, model.language.vocab_size) for step in range(first_step, 4)]
    return layouts.start(parallel, stage, groups, model=model, steps=steps, precision=precision)


def train(made: Stage, steps: int) -> None:
    state = TrainState()
    for _ in range(steps):
        train_step(made.parts, state)


def bits_apart(one: Tensor, other: Tensor) -> int:
    """Elements that differ in any bit."""
    assert one.dtype == other.dtype and one.shape == other.shape
    size = one.element_size()
    left, right = (tensor.detach().contiguous().view(-1).view(torch.uint8).view(-1, size) for tensor in (one, other))
    return int((left != right).any(dim=1).sum())


def gathered(tensor: Tensor, groups: Groups) -> list[Tensor]:
    """Every tensor rank's copy, by rank."""
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    copies = [torch.empty_like(raw) for _ in range(groups.tp_size)]
    dist.all_gather(copies, raw, group=groups.tp)
    return [copy.view(tensor.dtype).view(tensor.shape) for copy in copies]


def held(made: Stage) -> Iterator[tuple[str, str, Tensor]]:
    """(canonical name, kind, tensor) of everything this rank holds that other tensor ranks should hold alike."""
    shares = {share.param_name: share for share in made.optimizer.fragments()}
    for name, parameter in made.built.module.named_parameters():
        box = made.built.boxes.get(name)
        if box is None or box.is_split:
            continue
        yield box.name, "weight", parameter
        if name in shares:
            yield from ((box.name, kind, tensor) for kind, tensor in shares[name].tensors.items())


# --- what a healthy run shows, and what is planted --------------------------------------------------------------


@dataclass(kw_only=True)
class Watched:
    """Of this rank; drift is the same number on all."""

    healthy: float
    """The largest after any of three steps."""
    elements_apart: int
    """Of weights, masters and moments, between tensor ranks, after them."""
    unwatched: list[str]
    """Weights that tensor ranks hold whole, and the drift leaves out."""
    found: dict[str, list[float]]
    """Drift with one weight planted, by its name: on the first tensor rank, then on the last of one data rank."""
    afterwards: float


def watch_drift(parallel: ParallelConfig, stage: str, precision: str) -> Watched:
    """On every rank: three steps, then copies of one weight after another made FACTOR times the others'."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, stage, precision, groups)
        replicated = made.optimizer.replicated()
        copies = [parameter for _, parameter in replicated]
        healthy = 0.0
        for _ in range(3):
            train(made, 1)
            healthy = max(healthy, largest_drift(copies, groups))
        apart = sum(bits_apart(tensor, gathered(tensor, groups)[0]) for _, _, tensor in held(made))
        whole = {name for name, kind, _ in held(made) if kind == "weight"}
        boxes = made.built.boxes
        found: dict[str, list[float]] = {}
        for name in WATCHED:
            for ranks in ((0, 0), (groups.tp_size - 1, groups.dp_size - 1)):
                mine = [parameter for watched, kind, parameter in held(made) if (watched, kind) == (name, "weight")]
                mine = mine if (groups.tp_rank, groups.dp_rank) == ranks else []
                before = [parameter.detach().clone() for parameter in mine]
                with torch.no_grad():
                    for parameter in mine:
                        parameter.mul_(FACTOR)
                    found.setdefault(name, []).append(largest_drift(copies, groups))
                    for parameter, value in zip(mine, before, strict=True):
                        parameter.copy_(value)
        answer = Watched(
            healthy=healthy,
            elements_apart=apart,
            unwatched=sorted(whole - {boxes[name].name for name, _ in replicated}),
            found=found,
            afterwards=largest_drift(copies, groups),
        )
        made.optimizer.close()
        return answer


# --- plain copies -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Copies:
    """What parallel/replicas.py says of plain copies of one tensor, on this rank."""

    drift: float
    parted: bool
    mean: Tensor | None
    refused: str | None
    """Why there is no mean."""
    first: Tensor
    """As all ranks had it before."""


def measure_copies(ranks: int, changes: dict[int, tuple[int, float]], dtype: torch.dtype) -> Copies:
    """`ranks` tensor ranks with equal copies, of which some have one element changed: {rank: (place, value)}."""
    with model_parallel(ParallelConfig(tensor=ranks), pick_device(), seed=0) as groups:
        generator = torch.Generator().manual_seed(0)
        copies = [torch.randn(37, 11, generator=generator).to(dtype), torch.zeros(5, dtype=dtype)]
        first = copies[0].clone()
        if groups.tp_rank in changes:
            place, value = changes[groups.tp_rank]
            copies[0].view(-1)[place] = value
        mine = copies[0].clone()
        parted, drift = have_parted(copies, groups), largest_drift(copies, groups)
        mean, refused = None, None
        try:
            mean = mean_copy(copies[0], groups)
        except ValueError as error:
            refused = str(error)
        assert not bits_apart(mine, copies[0]), "looking at a copy has changed it"
        return Copies(drift=drift, parted=parted, mean=mean, refused=refused, first=first)
