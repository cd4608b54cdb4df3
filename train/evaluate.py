"""Held-out loss by source, on the run's own layout and through its own schedule, forward alone.

Nothing that training stands on is touched: held-out samples have a plan, a cursor and readers of their own, no
gradient is taken, and generators of random numbers are as before when it is over.

Which samples those are is arithmetic on (indexes, seed, `evaluate.samples`), so losses of different steps, layouts and
runs can be compared. They are one window of a plan, and each source has in it as many samples as are looked at.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data.encoding.tokenizer import load_tokenizer
from data.loading.loader import Loader
from data.loading.pool import open_readers
from data.plan.plan import Cursor, Plan, assign_rows
from model.vlm import Row
from parallel.collectives import any_of, sum_over
from parallel.groups import Groups
from parallel.pace import Spent
from parallel.place import Board
from parallel.schedule import Schedule
from train.batches import Batches, RowForm
from train.checkpoint.generators import undisturbed
from train.config import RunConfig
from train.held_out import held_out, rows_for


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What an evaluation found, the same on every rank."""

    losses: dict[str, float]
    """By source: mean over the supervised tokens of its samples; nan where there are none."""
    targets: dict[str, int]
    """By source: supervised tokens."""
    bad: int
    """Samples that could not be read; they count nowhere."""
    seconds: float


class Evaluation:
    """The held-out samples of a run on this rank. All ranks of the world call its methods alike."""

    def __init__(self, run: RunConfig, groups: Groups, chunks: Any, board: Board, form: RowForm) -> None:
        """Args:
        chunks: this rank's chunks of the model.
        form: of the run's own rows.

        Raises ValueError if a source does not fit the run; the same on every rank.
        """
        config, self._indexes = held_out(run.data, run.evaluate)
        self._config = rows_for(config, self._indexes, groups.dp_size, _least_rows(run))
        self.plan = Plan(self._config, self._indexes)
        self._steps = math.ceil(self.plan.rows_of_window(0) / self._config.rows_per_step)
        self._names = [source.name for source in self._config.sources]
        self._form = replace(form, sources=len(self._names))
        self._groups = groups
        self._board = board
        self._schedule = Schedule(chunks, groups, _OneWord(board))

    def losses(self, asked_to_end: Callable[[], bool] = lambda: False) -> Evaluated | None:
        """Held-out losses of the weights as they are; None if any rank is asked to end meanwhile."""
        started = time.perf_counter()
        bad: set[int] = set()
        sums = torch.zeros(2, len(self._names), dtype=torch.float64)  # of losses and of targets
        batches = self._open(lambda record: bad.add(record["sample_id"]))
        try:
            with undisturbed(self._groups), torch.no_grad():
                for _ in range(self._steps):
                    if any_of(None, asked_to_end()):
                        return None
                    sums += self._step(batches)
        finally:
            batches.close()
        mine = sums if self._groups.is_last_pipeline_stage and self._groups.tp_rank == 0 else torch.zeros_like(sums)
        found, *both = sum_over(None, [float(len(bad)), *mine.flatten().tolist()])
        totals, targets = both[: len(self._names)], [int(count) for count in both[len(self._names) :]]
        means = [total / count if count else math.nan for total, count in zip(totals, targets, strict=True)]
        return Evaluated(
            losses=dict(zip(self._names, means, strict=True)),
            targets=dict(zip(self._names, targets, strict=True)),
            bad=int(found),
            seconds=time.perf_counter() - started,
        )

    def _open(self, quarantine: Callable[[dict[str, Any]], None]) -> Batches:
        """Read from the first row on; readers live no longer than one evaluation."""
        loader = None
        if self._groups.is_reader:
            readers = open_readers(self._config, load_tokenizer(self._config.tokenizer), self._indexes)
            place = self._groups.dp_rank, self._groups.dp_size
            loader = Loader(self._config, self.plan, readers, *place, Cursor(), quarantine)
        return Batches(self.plan, loader, self._groups, self._form, Cursor())

    def _step(self, batches: Batches) -> Tensor:
        """fp64 (2, sources) on the host: sums of losses and targets of this replica, on its last pipeline stage."""
        cursor = batches.cursor
        self._board.look_at((cursor.window, cursor.row))
        self._board.tell("evaluate")
        plan, announced = batches.next()
        sources = torch.arange(len(self._names), device=self._groups.device).view(-1, 1)

        def loss(row: Row, token_losses: Tensor) -> tuple[Tensor, Tensor]:
            counted = (row.sources == sources) & (row.targets >= 0)
            lost = torch.where(counted, token_losses, 0.0)
            by_source = torch.stack((lost, counted.to(lost.dtype))).double().sum(dim=2)
            return token_losses.sum(), by_source

        found = self._schedule.run(announced.rows, announced.lengths, loss, forward_only=True)
        mine = assign_rows(plan.rows, self._groups.dp_size)[self._groups.dp_rank]
        # The last step is filled up with rows of the next window: every replica must have its rows.
        held = [sums for number, sums in zip(mine, found, strict=False) if plan.rows[number].window == 0]
        return torch.stack(held).sum(dim=0).cpu() if held else torch.zeros(2, len(self._names), dtype=torch.float64)


class _OneWord(Board):
    """Tells the run's board `evaluate` of whatever the schedule does: a report is about these rows and no step's."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.spent = Spent()  # of no step

    def tell(self, phase: str, microbatch: int | None = None) -> None:
        self._board.tell("evaluate", microbatch)


def _least_rows(run: RunConfig) -> int:
    return run.parallel.pipeline if run.parallel.chunks > 1 else 1
