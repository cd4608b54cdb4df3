"""Steps at which trainers hang or go wrong, and the layouts on which each of them is tried."""

from dataclasses import dataclass, replace

import numpy as np

from data.config import IGNORE
from data.types import PackedRow
from model.config import ModelConfig, VisionConfig
from parallel.config import ParallelConfig
from tests.harness.grid import GRID
from tests.harness.layouts import MODEL, Record, train_on_layout
from tests.harness.plain_adamw import train_plainly
from tests.harness.rows import GRIDS, ODD_GRIDS, sized_row
from tests.prove.context import LAYOUTS as COMMON

LAYOUTS = COMMON | {
    "PP4": (4, ParallelConfig(pipeline=4)),
    "PP2 interleaved": (2, ParallelConfig(pipeline=2, chunks=2)),
    "TP2xPP2+SP interleaved": (4, ParallelConfig(tensor=2, pipeline=2, sequence_parallel=True, chunks=2)),
    "TP4": (4, ParallelConfig(tensor=4)),
    "TP4+SP": (4, ParallelConfig(tensor=4, sequence_parallel=True)),
    "TP8+SP": (8, ParallelConfig(tensor=8, sequence_parallel=True)),
}
EVERY = ("one process", "DP2", "PP2", "TP2+SP", "DP2xTP2", "DP2xPP2", "PP4", "PP2 interleaved")
REPLICAS = ("DP2", "DP2xTP2+SP", "DP2xPP2")
DECAY = 5.0
"""Of every part: at a rate of 1e-4 a decay of 0.05 would move nothing by 1e-5, so a missing one could not be seen."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """A row to be made: text, after pictures and clips if there are any."""

    tokens: int
    grids: tuple[int, ...] = ()
    """By number, of tests.harness.rows."""
    masked: bool = False
    """No token is supervised."""


@dataclass(frozen=True, kw_only=True)
class Awkward:
    """A few steps. Rows of a step go to replicas in turn."""

    steps: tuple[tuple[Given, ...], ...]
    layouts: tuple[str, ...] = EVERY
    stages: tuple[str, ...] = ("stage2",)
    model: ModelConfig = MODEL

    def rows(self) -> list[list[PackedRow]]:
        """The steps as they are trained on."""
        assert self.model.vision is not None
        grids = ODD_GRIDS if self.model.vision.spatial_merge_size == 3 else GRIDS
        generator = np.random.default_rng(7)
        return [[self._row(generator, row, grids) for row in step] for step in self.steps]

    def _row(self, generator: np.random.Generator, given: Given, grids: tuple) -> PackedRow:
        chosen = [grids[number] for number in given.grids]
        merge = self.model.vision.spatial_merge_size  # type: ignore[union-attr]
        row = sized_row(generator, self.model.language.vocab_size, given.tokens, chosen, merge)
        return replace(row, targets=np.full_like(row.targets, IGNORE)) if given.masked else row


def _text(tokens: int, masked: bool = False) -> Given:
    return Given(tokens=tokens, masked=masked)


def _seen(tokens: int, *grids: int, masked: bool = False) -> Given:
    return Given(tokens=tokens, grids=grids, masked=masked)


def _words(model: ModelConfig, count: int) -> ModelConfig:
    return replace(model, language=replace(model.language, vocab_size=count))


EIGHT = replace(
    MODEL,
    vision=VisionConfig(depth=2, embed_dim=64, num_heads=8),
    language=replace(MODEL.language, num_heads=8, num_kv_heads=8, mrope_section=(2, 1, 1)),
)
"""Merges 2x2 patches as published models do. Their number is a multiple of 4, so the first axis that pads is 8."""


AWKWARD = {
    "a microbatch without pictures": Awkward(
        steps=(
            (_seen(31, 0), _seen(40, 4, 1), _text(17), _text(12)),
            (_text(9), _seen(28, 2), _seen(33, 3), _text(21)),
        ),
        stages=("stage1", "stage2", "stage3"),
    ),
    "a replica without pictures in the whole step": Awkward(
        steps=((_seen(31, 0), _text(17), _seen(33, 3), _text(12)), (_text(9), _seen(28, 2), _text(21), _seen(40, 4))),
        layouts=REPLICAS,
        stages=("stage1", "stage2", "stage3"),
    ),
    "no picture in a whole step": Awkward(
        steps=((_text(19), _text(26)), (_seen(31, 0), _seen(33, 3)), (_text(14), _text(22))),
        layouts=(*EVERY[:-2], "TP2xPP2+SP", "PP4", "PP2 interleaved"),
        stages=("stage2", "stage3"),
    ),
    "pictures and clips in one row": Awkward(
        steps=((_seen(80, 0, 2, 1, 4), _seen(71, 4, 3)), (_seen(64, 2, 0), _seen(59, 3, 4, 0)))
    ),
    "fewer microbatches than pipeline stages": Awkward(
        steps=((_seen(31, 0), _text(17), _seen(28, 2)), (_text(19), _seen(25, 1), _text(40))),
        layouts=("PP4",),
        stages=("stage1", "stage2"),
    ),
    "one microbatch": Awkward(
        steps=((_seen(31, 0, 4),), (_seen(28, 2),)),
        layouts=("one process", "TP2+SP", "PP2", "TP2xPP2+SP", "PP4"),
        stages=("stage1", "stage2"),
    ),
    "one microbatch a replica": Awkward(
        steps=((_seen(31, 0, 4), _text(11)), (_text(6), _seen(28, 2))), layouts=REPLICAS, stages=("stage1", "stage2")
    ),
    "lengths of 5, 37, 700 and 3000 tokens": Awkward(
        steps=(
            (_text(5), _seen(37, 1), _seen(700, 0, 2), _text(3000)),
            (_seen(3000, 4), _text(5), _text(37), _text(700)),
        )
    ),
    "odd lengths under sequence parallelism": Awkward(
        steps=((_text(5), _seen(39, 1), _text(1), _seen(13, 3)), (_seen(27, 4), _text(3), _seen(35, 0), _text(7))),
        layouts=("TP2+SP", "DP2xTP2+SP", "TP2xPP2+SP", "TP2xPP2+SP interleaved", "TP4+SP"),
        model=GRID,  # patches in odd numbers too
    ),
    "60 and 36 patches on 8 tensor ranks": Awkward(
        steps=((_seen(50, 0, 1, 3, 4), _text(17)), (_text(9), _seen(40, 2, 3))), layouts=("TP8+SP",), model=EIGHT
    ),
    "a row whose tokens are all masked": Awkward(
        steps=(
            (_seen(31, 0), _seen(40, 4, masked=True), _text(17), _text(12, masked=True)),
            (_text(9, masked=True), _text(15), _seen(33, 3, masked=True), _text(21)),
        ),
        stages=("stage1", "stage2"),
    ),
    "301 words on 2 and 4 tensor ranks": Awkward(
        steps=((_seen(31, 0), _text(17)), (_text(9), _seen(28, 2))),
        layouts=("TP2", "TP2+SP", "TP2xPP2", "TP4", "TP4+SP"),
        model=GRID,
    ),
    # 12 places for 9 words: the last rank has none of them.
    "9 words on 4 tensor ranks": Awkward(
        steps=((_seen(31, 0), _text(17)), (_text(9), _seen(28, 2))),
        layouts=("TP4", "TP4+SP"),
        model=_words(GRID, 9),
    ),
}


def train_awkward(
    batch: str, parallel: ParallelConfig, stage: str, precision: str = "fp32", decay: float = DECAY
) -> Record:
    """The steps of a batch on this rank; run it on every rank."""
    made = AWKWARD[batch]
    changes = {"weight_decays": dict.fromkeys(MODEL.parts, decay)}
    return train_on_layout(parallel, stage, model=made.model, steps=made.rows(), changes=changes, precision=precision)


def train_awkward_plainly(batch: str, stage: str, decay: float = DECAY) -> Record:
    """The same in a world of one process by autograd and torch's AdamW, in fp32."""
    made = AWKWARD[batch]
    changes = {"weight_decays": dict.fromkeys(MODEL.parts, decay)}
    return train_plainly(stage, made.rows(), model=made.model, changes=changes)
