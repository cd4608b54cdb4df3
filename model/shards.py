"""How many parameters each rank of a layout holds, and which of them more than one rank holds."""

import math
import re
from collections import Counter
from dataclasses import dataclass

import torch

from model.build import BuiltModel, build_model
from model.config import ModelConfig
from model.hf_weights import canonical_shape, hf_pieces
from model.placement import check_layout
from parallel.config import ParallelConfig
from parallel.world import imagined_rank

_LAYER = re.compile(r"\.layers\.\d+\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """Parameters of one replica, rank by rank. `sum of held == total + sum of replicated + padded`."""

    total: int
    """Of the whole model, each parameter once, from the shapes of its published weights."""
    held: tuple[tuple[int, ...], ...]
    """[pipeline stage][tensor rank], counted from the modules of each rank."""
    replicated: dict[str, int]
    """Canonical name, layer numbers as `*` -> parameters held beyond once: whole copies on further tensor ranks, and
    a tied embedding on the last pipeline stage."""
    padded: int
    """Vocabulary rows that no token uses, times the width, so that tensor ranks hold alike."""

    @property
    def unaccounted(self) -> int:
        """Parameters held that are neither the model's, nor copies, nor padding: 0 unless something is wrong."""
        return sum(map(sum, self.held)) - self.total - sum(self.replicated.values()) - self.padded


def shard_report(config: ModelConfig, parallel: ParallelConfig, dtype: torch.dtype = torch.bfloat16) -> ShardReport:
    """Build every rank of one replica on the meta device, one after the other: no memory, some 50 ms a rank.

    For a process that has not joined a world. ValueError if the model cannot have this layout.
    """
    check_layout(config, parallel)
    held: list[list[int]] = []
    replicated: Counter[str] = Counter()
    padded = 0
    for stage in range(parallel.pipeline):
        held.append([])
        for tp_rank in range(parallel.tensor):
            world_size = parallel.tensor * parallel.pipeline
            # The tensor axis is the fastest one (parallel/grid.py); a single replica has no other ranks between.
            with imagined_rank(parallel, world_size, stage * parallel.tensor + tp_rank) as groups:
                assert (groups.pp_rank, groups.tp_rank) == (stage, tp_rank)
                built = build_model(config, parallel, groups, dtype, config.parts)
                count, copies = _count(built, tp_rank)
                held[-1].append(count)
                replicated += copies
                padded += count - sum(math.prod(box.shape) for box in built.boxes.values())
    total = sum(math.prod(canonical_shape(pieces)) for pieces in hf_pieces(config).values())
    tuples = tuple(tuple(stage) for stage in held)
    return ShardReport(total=total, held=tuples, replicated=dict(replicated), padded=padded)


def _count(built: BuiltModel, tp_rank: int) -> tuple[int, Counter[str]]:
    """Parameters of one rank, and those of them that another rank counts as the model's."""
    count, copies = 0, Counter[str]()
    for local_name, parameter in built.module.named_parameters():
        box = built.boxes[local_name]
        count += parameter.numel()
        if not box.owner or (tp_rank > 0 and not box.is_split):
            copies[_LAYER.sub(".layers.*.", box.name)] += math.prod(box.shape)
    return count, copies


def report_lines(report: ShardReport, parallel: ParallelConfig) -> list[str]:
    """The report for human eyes."""
    lines = [f"{report.total:,} parameters over tensor {parallel.tensor} x pipeline {parallel.pipeline}"]
    for stage, counts in enumerate(report.held):
        each = f"{counts[0]:,} a rank" if len(set(counts)) == 1 else ", ".join(f"{count:,}" for count in counts)
        lines.append(f"pipeline stage {stage}: {each}")
    lines.append(f"held by all ranks: {sum(map(sum, report.held)):,}")
    lines += [f"  held more than once: {name} {count:,}" for name, count in report.replicated.items()]
    if report.padded:
        lines.append(f"  vocabulary padding: {report.padded:,}")
    return lines
