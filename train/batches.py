"""From planned rows to microbatches on the device: read by one rank a replica, announced to the others."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.config import IGNORE
from data.loading.loader import Loader
from data.loading.rows import ReadStats
from data.plan.plan import Cursor, Plan, StepPlan, assign_rows
from data.types import PackedRow
from model.attention import Segments
from model.flops import Work, row_work
from model.vlm import Row
from parallel.announce import announce_integers, share_pixels
from parallel.groups import Groups
from train.config import RunConfig


class Counts(NamedTuple):
    """A line of the announced table: what one microbatch holds."""

    tokens: int
    """Places of the row, padding included."""
    patches: int
    segments: int
    """Samples, and the padding as one more."""
    targets: int
    """Supervised tokens."""
    pictures: int
    """Pictures and clips."""
    visual_tokens: int
    bad: int
    """Samples that could not be decoded."""

    def payload(self) -> tuple[int, ...]:
        """How many integers follow for tokens, targets, positions, lengths and sources of segments, grids and visual
        index."""
        of_segments = self.segments, self.segments
        return self.tokens, self.tokens, 3 * self.tokens, *of_segments, 3 * self.pictures, self.visual_tokens


class SourceCounts(NamedTuple):
    """What a replica, or a step, has of one source."""

    samples: int
    tokens: int
    """Padding is not counted."""
    targets: int
    """Supervised tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowForm:
    """How microbatches look on the device."""

    dtype: torch.dtype
    """Of the patches."""
    patch_dim: int
    """Floats of one flattened patch; 0 for a model without vision."""
    multiple: int
    """Rows are padded to a multiple of this: the tensor axis under sequence parallelism, else 1."""
    sources: int = 1
    """Of the mixture; each sample is of one."""


def dtype_of(run: RunConfig) -> torch.dtype:
    """Of weights and patches."""
    return torch.bfloat16 if run.precision == "bf16" else torch.float32


def row_form(run: RunConfig) -> RowForm:
    """How the rows of a run look."""
    return RowForm(
        dtype=dtype_of(run),
        patch_dim=run.model.vision.patch_dim if run.model.vision else 0,
        multiple=run.parallel.tensor if run.parallel.sequence_parallel else 1,
        sources=len(run.data.sources),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Announced:
    """One replica's share of a step, known alike on all its ranks."""

    rows: list[Row]
    lengths: list[int]
    num_targets: int
    num_samples: int
    num_bad: int
    """Samples that could not be decoded and hold a place only."""
    work: Work
    """Padding for sequence parallelism is not counted."""
    by_source: list[SourceCounts]


class Batches:
    """The steps of a run, one after the other. Every rank follows the plan; only readers touch data."""

    def __init__(self, plan: Plan, loader: Loader | None, groups: Groups, form: RowForm, cursor: Cursor) -> None:
        assert (loader is not None) == groups.is_reader
        self._plan = plan
        self._loader = loader
        self._groups = groups
        self._form = form
        self.cursor = cursor
        self.waited = 0.0
        """Seconds that the last step's rows were waited for, on a rank that reads."""

    def next(self) -> tuple[StepPlan, Announced]:
        """Read, announce and move the cursor on."""
        if self._loader is not None:
            started = time.perf_counter()
            step_plan, packed = self._loader.next_step()
            self.waited = time.perf_counter() - started
            announced = announce(packed, len(packed), self._groups, self._form)
        else:
            step_plan = self._plan.step(self.cursor)
            num_rows = len(assign_rows(step_plan.rows, self._groups.dp_size)[self._groups.dp_rank])
            announced = announce(None, num_rows, self._groups, self._form)
        self.cursor = step_plan.next_cursor
        return step_plan, announced

    def stats(self) -> ReadStats:
        """What reading counted for this replica since the start, on its reader; nothing on other ranks."""
        return self._loader.stats() if self._loader is not None else ReadStats()

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()


def announce(packed: Sequence[PackedRow] | None, num_rows: int, groups: Groups, form: RowForm) -> Announced:
    """Give a replica its microbatches. `packed` is None on ranks that do not read.

    Padding to `form.multiple` is a segment of its own and is never supervised.
    """
    table, payload = _broadcast(packed, num_rows, groups, form.multiple)
    fields = iter(payload.split([size for counts in table for size in counts.payload()]))
    rows = []
    num_samples = 0
    work = Work()
    by_source = torch.zeros(len(SourceCounts._fields), form.sources, dtype=torch.int64)
    for number, counts in enumerate(table):
        tokens, targets, positions, segments, sources, grids, visual_index = (next(fields) for _ in counts.payload())
        # Looked up on the host: a device would have to be waited for. The head takes no empty list of places.
        supervised = (targets >= 0).nonzero().flatten() if counts.targets else torch.zeros(1, dtype=torch.int64)
        grid_list = [(t, h, w) for t, h, w in grids.view(-1, 3).tolist()]
        samples = [length for length in segments.tolist() if length > 0]  # a negative one is padding
        source_of = sources.repeat_interleave(segments.abs())[supervised]
        pixels = torch.from_numpy(packed[number].patches) if packed is not None else None
        rows.append(
            Row(
                tokens=_to(tokens.view(1, -1), groups),
                supervised=_to(supervised, groups),
                targets=_to(targets[supervised].view(1, -1), groups),
                sources=_to(source_of.view(1, -1), groups),
                positions=_to(positions.view(3, 1, -1), groups),
                segments=Segments(lengths=tuple(segments.abs().tolist()), device=groups.device),
                grids=grid_list,
                visual_index=_to(visual_index, groups),
                patches=share_pixels(pixels, (counts.patches, form.patch_dim), form.dtype, groups),
            )
        )
        num_samples += len(samples)
        by_source += _of_sources(segments, sources, source_of if counts.targets else source_of[:0], form.sources)
        work += row_work(samples, grid_list, len(supervised))
    return Announced(
        rows=rows,
        lengths=[counts.tokens for counts in table],
        num_targets=sum(counts.targets for counts in table),
        num_samples=num_samples,
        num_bad=sum(counts.bad for counts in table),
        work=work,
        by_source=[SourceCounts(*column) for column in by_source.T.tolist()],
    )


def _of_sources(segments: Tensor, sources: Tensor, supervised: Tensor, count: int) -> Tensor:
    """Fields of SourceCounts by source, int64 (3, count), of one row.

    Args:
        supervised: source of each supervised token.
    """
    lengths, own = segments[segments > 0], sources[segments > 0]
    tokens = torch.zeros(count, dtype=torch.int64).index_add_(0, own, lengths)
    return torch.stack([own.bincount(minlength=count), tokens, supervised.bincount(minlength=count)])


def _broadcast(
    packed: Sequence[PackedRow] | None, num_rows: int, groups: Groups, multiple: int
) -> tuple[list[Counts], Tensor]:
    """The table, and the integers of all rows one after the other, int64 1-D; two broadcasts."""
    table = values = None
    if packed is not None:
        assert len(packed) == num_rows
        integers = [_integers(row, multiple) for row in packed]
        lines = [_counts(row, fields) for row, fields in zip(packed, integers, strict=True)]
        table = torch.tensor(lines, dtype=torch.int64).view(-1)
        values = torch.cat([field.reshape(-1) for fields in integers for field in fields])
    announced = announce_integers(table, num_rows * len(Counts._fields), groups)
    counts = [Counts(*line) for line in announced.view(num_rows, -1).tolist()]
    return counts, announce_integers(values, sum(sum(line.payload()) for line in counts), groups)


def _counts(row: PackedRow, integers: list[Tensor]) -> Counts:
    tokens, targets, _, segments, _, grids, visual_index = integers
    return Counts(
        tokens=tokens.numel(),
        patches=len(row.patches),
        segments=segments.numel(),
        targets=int((targets >= 0).sum()),
        pictures=len(grids),
        visual_tokens=visual_index.numel(),
        bad=row.num_bad,
    )


def _to(tensor: Tensor, groups: Groups) -> Tensor:
    return tensor.to(groups.device, non_blocking=True)


def _integers(row: PackedRow, multiple: int) -> list[Tensor]:
    padding = -len(row.tokens) % multiple
    tokens, targets, positions = row.tokens, row.targets, row.positions
    segments, sources = row.segment_lengths, row.source_ids
    if padding:
        tokens = np.pad(tokens, (0, padding))
        targets = np.pad(targets, (0, padding), constant_values=IGNORE)
        positions = np.concatenate((positions, np.tile(np.arange(padding), (3, 1))), axis=1)
        segments, sources = np.append(segments, -padding), np.append(sources, 0)
    values = (tokens, targets, positions, segments, sources, row.grids, row.visual_index)
    return [torch.from_numpy(np.ascontiguousarray(value, dtype=np.int64)) for value in values]
