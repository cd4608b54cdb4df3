"""Every layout of up to 8 processes x training stage, and the model and rows that all of them can have."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from data.types import PackedRow
from model.config import LanguageConfig, ModelConfig, VisionConfig
from parallel.config import ParallelConfig, Recompute, RecomputeConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import NUM_STEPS, STAGES, Record, start, train_on_layout
from tests.harness.plain_adamw import train_plainly
from tests.harness.rows import ODD_GRIDS, random_step
from train.state import TrainState
from train.step import train_step

GRID = ModelConfig(
    name="grid",
    # Patches are merged by 3x3: by 2x2 their number is a multiple of 4, and no tensor axis here would have to pad them.
    vision=VisionConfig(depth=2, embed_dim=32, num_heads=4, spatial_merge_size=3),
    language=LanguageConfig(
        hidden_size=64,
        num_layers=8,
        num_heads=8,
        num_kv_heads=4,
        ffn_size=96,
        vocab_size=301,
        mrope_section=(2, 1, 1),
        tie_embeddings=True,
    ),
)
SIZES = (1, 2, 4)
LARGEST_WORLD = 8
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One training stage on one layout."""

    world_size: int
    parallel: ParallelConfig
    stage: str

    @property
    def layout(self) -> str:
        """Such as DP1xTP2xPP4+SP interleaved."""
        axes = self.parallel
        sizes = f"DP{axes.data_size(self.world_size)}xTP{axes.tensor}xPP{axes.pipeline}"
        return sizes + "+SP" * axes.sequence_parallel + " interleaved" * (axes.chunks > 1)

    @property
    def name(self) -> str:
        """The layout, the stage, and what each tower computes again."""
        recompute = self.parallel.recompute
        return f"{self.layout} {self.stage} vision {recompute.vision} language {recompute.language}"


def all_cells() -> list[GridCell]:
    """Smaller worlds first.

    Recomputation goes through its 9 pairs from layout to layout and starts elsewhere in each stage, so that each pair
    comes up in each stage and with each kind of layout (tests/parallel/test_layouts.py counts them).
    """
    pairs = list(product(RECOMPUTE, RECOMPUTE))
    cells = []
    for number, (world_size, tensor, pipeline, sequence_parallel, chunks) in enumerate(sorted(_layouts())):
        for turn, stage in enumerate(STAGES):
            vision, language = pairs[(number + 4 * turn) % len(pairs)]
            parallel = ParallelConfig(
                tensor=tensor,
                pipeline=pipeline,
                sequence_parallel=sequence_parallel,
                chunks=chunks,
                recompute=RecomputeConfig(vision=vision, language=language),
            )
            cells.append(GridCell(world_size=world_size, parallel=parallel, stage=stage))
    return cells


def _layouts() -> Iterator[tuple[int, int, int, bool, int]]:
    """(processes, tensor, pipeline, sequence parallel, chunks)"""
    for data, tensor, pipeline in product(SIZES, SIZES, SIZES):
        if data * tensor * pipeline <= LARGEST_WORLD:
            for sequence_parallel in (False, True) if tensor > 1 else (False,):
                for chunks in (1, 2) if pipeline > 1 else (1,):
                    yield data * tensor * pipeline, tensor, pipeline, sequence_parallel, chunks


def num_rows(parallel: ParallelConfig) -> int:
    """Rows of a step: as many as pipeline stages in each replica or more, and a multiple, as interleaving wants.

    Tensor ranks talk in every layer, which is most of the time that 8 processes take on two cores: half the rows do.
    """
    return 8 if parallel.tensor == 1 else 4


def grid_steps(num_rows: int) -> list[list[PackedRow]]:
    """Rows whose patches and tokens neither 2 nor 4 tensor ranks can share evenly, in each step."""
    vocabulary, merge = GRID.language.vocab_size, 3
    steps = [random_step(100 + step, num_rows, vocabulary, ODD_GRIDS, merge) for step in range(NUM_STEPS)]
    for rows in steps:
        for ways in (2, 4):
            assert any(len(row.patches) % ways for row in rows) and any(len(row.tokens) % ways for row in rows)
    return steps


def train_grid(parallel: ParallelConfig, stage: str, num_rows: int, tied: bool = True) -> Record:
    """The grid's steps on this rank; run it on every rank."""
    model = replace(GRID, language=replace(GRID.language, tie_embeddings=tied))
    return train_on_layout(parallel, stage, model=model, steps=grid_steps(num_rows))


def train_grid_plainly(stage: str, num_rows: int) -> Record:
    """The same in a world of one process by autograd and torch's AdamW."""
    return train_plainly(stage, grid_steps(num_rows), model=GRID)


def layer_calls(parallel: ParallelConfig) -> dict[str, int]:
    """Forward calls in one step of stage 2 with 4 rows, 3 of them with pictures: layers and attention cores by part."""
    calls = {"vision layer": 0, "vision core": 0, "language layer": 0, "language core": 0}
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, "stage2", groups)

        def count(key: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                calls[key] += 1

            return hook

        for chunk in made.built.module.chunks:
            towers = {"language": chunk.language.decoder} | ({"vision": chunk.vision.blocks} if chunk.vision else {})
            for part, block in towers.items():
                for layer in block.layers:
                    layer.register_forward_hook(count(f"{part} layer"))
                    layer.self_attention.core_attention.register_forward_hook(count(f"{part} core"))
        train_step(made.parts, TrainState())
        made.optimizer.close()
    return calls
