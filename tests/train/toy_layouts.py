"""A toy model laid out over tensor, pipeline and data axes, with boxes and ZeRO-1 fragments like the real ones.

It stands in for model.canonical and parallel.zero: importing megatron-core and DeepSpeed costs seconds a process.
"""

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tests.harness.commits import save_commit
from train.checkpoint.entries import Writer

VOCAB, HIDDEN, LAYERS = 7, 3, 2
PADDING = -77.0


@dataclass(frozen=True)
class ToyBox:
    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    owner: bool = True

    def view(self, parameter: Tensor) -> Tensor:
        return parameter.detach().view(-1)[: math.prod(self.shape)].view(self.shape)

    @property
    def is_split(self) -> bool:
        return self.shape != self.global_shape

    def cut(self, whole: Tensor) -> Tensor:
        return whole[tuple(slice(at, at + size) for at, size in zip(self.offset, self.shape, strict=True))]


@dataclass
class ToyFragment:
    param_name: str
    start: int
    numel: int
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    tp: int = 1
    pp: int = 1
    dp: int = 1

    @property
    def size(self) -> int:
        return self.tp * self.pp * self.dp

    def place(self, rank: int) -> tuple[int, int, int]:
        """(tp_rank, dp_rank, pp_rank)"""
        return rank % self.tp, (rank // self.tp) % self.dp, rank // (self.tp * self.dp)


def layouts(world_size: int) -> list[Layout]:
    sizes = (1, 2, 3, 4)
    found = [Layout(tp, pp, dp) for tp, pp, dp in itertools.product((1, 2, 4), (1, 2), sizes)]
    return [layout for layout in found if layout.size <= world_size]


def shapes() -> dict[str, tuple[tuple[int, ...], int | None]]:
    """Canonical name -> (whole shape, dim that the tensor axis cuts)."""
    found: dict[str, tuple[tuple[int, ...], int | None]] = {
        "vision.patch_embed.weight": ((6, 5), None),
        "merger.fc1.weight": ((4, 4), None),
        "language.embedding.word_embeddings.weight": ((VOCAB, HIDDEN), 0),
        "language.decoder.final_layernorm.weight": ((HIDDEN,), None),
    }
    for layer in range(LAYERS):
        prefix = f"language.decoder.layers.{layer}"
        found[f"{prefix}.self_attention.linear_qkv.weight"] = ((4, 3, 2, HIDDEN), 0)
        found[f"{prefix}.self_attention.linear_qkv.bias"] = ((4, 3, 2), 0)
        found[f"{prefix}.self_attention.linear_proj.weight"] = ((HIDDEN, 8), 1)
        found[f"{prefix}.mlp.linear_fc1.weight"] = ((2, 8, HIDDEN), 1)
    return found


def truth(kind: str, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Whole tensor `kind` (weight, master, exp_avg, exp_avg_sq) of `name`; the same in every process."""
    seed = sum(ord(letter) * (place + 1) for place, letter in enumerate(kind + name))
    return torch.randn(shapes()[name][0], generator=torch.Generator().manual_seed(seed)).to(dtype)


def stage_of(name: str, pp: int) -> int:
    if name.startswith("language.decoder.layers."):
        return int(name.split(".")[3]) * pp // LAYERS
    return pp - 1 if "final_layernorm" in name else 0


@dataclass
class ToyRank:
    """One rank's parameters, boxes and optimizer, all empty (zeros, padding marked)."""

    layout: Layout
    rank: int
    dtype: torch.dtype = torch.bfloat16
    frozen: tuple[str, ...] = ("vision",)
    boxes: dict[str, ToyBox] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    steps_taken: int = 0

    def __post_init__(self) -> None:
        self.tp_rank, self.dp_rank, pp_rank = self.layout.place(self.rank)
        for name, (whole, split) in shapes().items():
            if stage_of(name, self.layout.pp) == pp_rank:
                self._add(f"local.{name}", name, whole, split, owner=True)
        if self.layout.pp > 1 and pp_rank == self.layout.pp - 1:
            name = "language.embedding.word_embeddings.weight"
            self._add("local.output_layer", name, *shapes()[name], owner=False)
        self._make_fragments()

    def _add(self, local: str, name: str, whole: tuple[int, ...], split: int | None, owner: bool) -> None:
        offset, shape, rows = [0] * len(whole), list(whole), whole[0]
        if split is not None:
            rows = -(-whole[split] // self.layout.tp)
            offset[split] = min(self.tp_rank * rows, whole[split])
            shape[split] = min(rows, whole[split] - offset[split])
        self.boxes[local] = ToyBox(name, whole, tuple(offset), tuple(shape), owner)
        padded = math.prod(shape) if split is None else math.prod(shape[:split]) * rows * math.prod(shape[split + 1 :])
        self.parameters[local] = torch.full((padded,), PADDING, dtype=self.dtype)

    def _make_fragments(self) -> None:
        trainable = [name for name in self.boxes if self.boxes[name].name.partition(".")[0] not in self.frozen]
        total = sum(self.parameters[name].numel() for name in trainable)
        share = -(-total // self.layout.dp)
        low, high = self.dp_rank * share, (self.dp_rank + 1) * share
        flats = {kind: torch.full((share,), PADDING) for kind in ("master", "exp_avg", "exp_avg_sq")}
        self.held: list[ToyFragment] = []
        at = 0
        for name in trainable:
            numel = self.parameters[name].numel()
            start, stop = max(low, at), min(high, at + numel)
            if start < stop:
                tensors = {kind: flat[start - low : stop - low] for kind, flat in flats.items()}
                self.held.append(ToyFragment(name, start - at, stop - start, tensors))
            at += numel

    def fragments(self) -> list[ToyFragment]:
        return self.held

    def loaded(self, steps_taken: int) -> None:
        self.steps_taken = steps_taken

    def pairs(self) -> list[tuple[str, Tensor, Tensor]]:
        """(what, the memory that a checkpoint must fill, what it must hold); padding is expected untouched."""
        found = []
        for local, box in self.boxes.items():
            expected = torch.full_like(self.parameters[local], PADDING)
            expected[: math.prod(box.shape)] = box.cut(truth("weight", box.name, self.dtype)).flatten()
            found.append((f"{local} on {self.rank}", self.parameters[local], expected))
        for fragment in self.held:
            box = self.boxes[fragment.param_name]
            for kind, memory in fragment.tensors.items():
                local = torch.full((self.parameters[fragment.param_name].numel(),), PADDING)
                local[: math.prod(box.shape)] = box.cut(truth(kind, box.name)).flatten()
                expected = local[fragment.start : fragment.start + fragment.numel]
                found.append((f"{kind} of {fragment.param_name} on {self.rank}", memory, expected))
        return found

    def fill(self) -> "ToyRank":
        for _, memory, expected in self.pairs():
            memory.copy_(expected)
        self.steps_taken = 12
        return self


STATE = {"tokens": 12_345_678_901, "cursor": {"window": 3, "row": 5}, "fingerprint": "ab12"}


def save(toy: ToyRank, run: Path, step: int, keep: int = 99, group: dist.ProcessGroup | None = None) -> Path:
    writer = Writer(tp_rank=toy.tp_rank, dp_rank=toy.dp_rank, dp_size=toy.layout.dp)
    return save_commit(
        run, step, toy.parameters, toy.boxes, toy, STATE, "seed: 1\n", writer=writer, keep=keep, group=group
    )  # type: ignore[arg-type]


def one(frozen: tuple[str, ...] = ("vision",)) -> ToyRank:
    return ToyRank(Layout(), 0, frozen=frozen)


def differing(toy: ToyRank) -> list[str]:
    return [what for what, memory, expected in toy.pairs() if not torch.equal(memory, expected)]
