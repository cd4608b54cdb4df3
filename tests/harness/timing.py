"""Two ways of doing a step, timed in turn in one world: on a shared host only the ratio means something."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist

from model.balance import balanced_split, stage_shares
from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.flops import Work, part_flops
from model.placement import language_split
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import STAGES, start
from tests.harness.rows import pack, random_sample
from train.state import TrainState
from train.step import train_step

TIMED = ModelConfig(
    name="timed",
    vision=VisionConfig(depth=4, embed_dim=256, num_heads=4),
    language=LanguageConfig(
        hidden_size=256,
        num_layers=8,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=1024,
        vocab_size=2048,
        mrope_section=(8, 12, 12),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of each pair of steps, first and second way."""

    pairs: list[tuple[float, float]]

    @property
    def ratio(self) -> float:
        """Median over pairs of second / first."""
        return statistics.median(second / first for first, second in self.pairs)


def in_turn(first: Callable[[], object], second: Callable[[], object], pairs: int, warmup: int = 2) -> Timing:
    """Call both `pairs` times; which goes first changes from pair to pair. Ranks start each call together."""
    found = []
    for number in range(-warmup, pairs):
        seconds = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            dist.barrier()
            started = time.perf_counter()
            (first, second)[which]()
            dist.barrier()
            seconds[which] = time.perf_counter() - started
        if number >= 0:
            found.append((seconds[0], seconds[1]))
    return Timing(pairs=found)


def time_splits(
    stage: str, pipeline: int, visual: int, text: int, rows: int, pairs: int, model: ModelConfig = TIMED
) -> tuple[Timing, float, tuple[int, ...], list[float]]:
    """(timing of even and balanced split, share of vision in the FLOPs, balanced split, its shares)."""
    generator = np.random.default_rng(0)
    side = int((visual * 4) ** 0.5) // 2 * 2
    grid = (1, side, side)
    step = [
        pack([random_sample(generator, model.language.vocab_size, [grid]), _text(generator, model, text)])
        for _ in range(rows)
    ]
    tokens = sum(len(row.tokens) for row in step)
    work = Work(
        tokens=tokens,
        patches=rows * side * side,
        token_pairs=sum(int((row.segment_lengths**2).sum()) for row in step),
        patch_pairs=rows * side**4,
    )
    even = ParallelConfig(pipeline=pipeline)
    split = balanced_split(model, even, STAGES[stage], work)
    parts = part_flops(model, STAGES[stage], work)
    with model_parallel(even, pick_device(), seed=0) as groups:
        made = []
        for given in (None, split):
            layout = ParallelConfig(pipeline=pipeline, split=given)
            made.append(start(layout, stage, groups, model=model, steps=[step] * (pairs + 2)))
        states = [TrainState(), TrainState()]
        timing = in_turn(
            lambda: train_step(made[0].parts, states[0]), lambda: train_step(made[1].parts, states[1]), pairs
        )
        for one in made:
            one.optimizer.close()
    shares = stage_shares(model, even, STAGES[stage], work, split)
    print(language_split(model, even), stage_shares(model, even, STAGES[stage], work, language_split(model, even)))
    return timing, parts["vision"] / sum(parts.values()), split, shares


def _text(generator: np.random.Generator, model: ModelConfig, tokens: int) -> dict[str, np.ndarray]:
    sample = random_sample(generator, model.language.vocab_size, [])
    ids = generator.integers(8, model.language.vocab_size, tokens)
    targets = np.append(ids[1:], -100)
    return sample | {"tokens": ids, "targets": targets, "positions": np.tile(np.arange(tokens), (3, 1))}
