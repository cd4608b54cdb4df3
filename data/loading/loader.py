"""Rows ahead of the trainer, step after step.

Nothing here is state: the cursor of a checkpoint is that of the last step trained on, whatever was read ahead.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from data.config import DataConfig
from data.errors import BadSamples
from data.loading.pool import Readers, Result
from data.loading.rows import ReadStats
from data.loading.worker import Task
from data.plan.plan import Cursor, Plan, RowPlan, StepPlan, assign_rows
from data.types import PackedRow
from data.visual.cache_file import Use

Quarantine = Callable[[dict[str, Any]], None]
_LOOK_SECONDS = 0.2  # how late closing may be noticed
_FEW_SAMPLES = 100  # of which a share means nothing


@dataclass(slots=True)
class _Step:
    """A step whose rows are being read."""

    plan: StepPlan
    mine: list[int]
    """Rows of this replica."""
    results: dict[int, Result] = field(default_factory=dict)
    """By place in `mine`."""


class Loader:
    """The rows of one replica, step after step, read ahead by `prefetch_steps`."""

    def __init__(
        self,
        config: DataConfig,
        plan: Plan,
        readers: Readers,
        dp_rank: int,
        dp_size: int,
        cursor: Cursor,
        quarantine: Quarantine,
    ) -> None:
        if not 0 <= dp_rank < dp_size <= config.rows_per_step:
            raise ValueError(
                f"dp rank {dp_rank} of {dp_size} with data.rows_per_step {config.rows_per_step}: "
                f"the rank must be below the size, and there must be a row for each"
            )
        self._config = config
        self._plan = plan
        self._readers = readers
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self._quarantine = quarantine
        self._samples = self._bad = self._bad_in_row = 0
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=config.prefetch_steps)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read_ahead, args=(cursor,), name="data-loader", daemon=True)
        self._thread.start()

    def next_step(self) -> tuple[StepPlan, list[PackedRow]]:
        """The next step and this replica's rows of it. What failed in reading is raised here, now and ever after.

        Raises BadSamples once more samples were bad than the recipe allows.
        """
        if self._error is None:
            item = self._next_item()
            if not isinstance(item, BaseException):
                step, rows, records = item
                for record in records:
                    self._quarantine(record)
                try:
                    self._count_bad(rows, records)
                except BadSamples as error:
                    self._error = error
                    raise
                return step, rows
            self._error = item
        raise self._error

    def stats(self) -> ReadStats:
        """What reading counted since the start."""
        return self._readers.stats()

    def close(self) -> None:
        """Stop reading; safe to call twice, and while the thread waits or decodes."""
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._readers.interrupt()
        self._thread.join(timeout=10.0)
        self._readers.close()  # the thread may have started a process in between

    def _next_item(self) -> Any:
        while True:
            try:
                return self._ready.get(timeout=1.0)
            except queue.Empty:
                if self._stop.is_set() or not (self._thread.is_alive() or self._ready.qsize()):
                    return RuntimeError("the loader is closed")

    def _count_bad(self, rows: list[PackedRow], records: list[dict[str, Any]]) -> None:
        bad = {record["sample_id"] for record in records}
        for number in (number for row in rows for number in row.sample_ids.tolist()):
            self._samples += 1
            self._bad += number in bad
            self._bad_in_row = self._bad_in_row + 1 if number in bad else 0
            if self._bad_in_row > self._config.bad_in_row:
                raise BadSamples(
                    f"{self._bad_in_row} samples in a row are bad, {self._told(records[-1], 'bad_in_row')}"
                )
        share = self._bad / max(1, self._samples)
        if share > self._config.bad_share and self._samples >= _FEW_SAMPLES and records:
            raise BadSamples(f"{self._bad} of {self._samples} samples are bad, {self._told(records[-1], 'bad_share')}")

    def _told(self, last: dict[str, Any], limit: str) -> str:
        return (
            f"where the recipe allows data.{limit}={getattr(self._config, limit):g}; the last is "
            f"{last['source']}:{last['index']} at {last['where']}: {last['reason']}. All stand in the run's "
            f"quarantine_*.jsonl. Mend the source, or raise data.{limit}"
        )

    def _read_ahead(self, cursor: Cursor) -> None:
        steps: dict[int, _Step] = {}
        first = begun = 0
        tasks: list[tuple[int, int]] = []
        try:
            while not self._stop.is_set():
                while begun - first < self._config.prefetch_steps:
                    plan = self._plan.step(cursor)
                    cursor = plan.next_cursor
                    steps[begun] = _Step(plan, assign_rows(plan.rows, self._dp_size)[self._dp_rank])
                    tasks += [(begun, place) for place in range(len(steps[begun].mine))]
                    begun += 1
                while tasks and self._readers.has_room():
                    number, place = tasks.pop(0)
                    step = steps[number]
                    self._readers.give(self._task((number, place), step.plan.rows[step.mine[place]]))
                for (number, place), result in self._readers.collect(_LOOK_SECONDS):
                    steps[number].results[place] = result
                while first in steps and len(steps[first].results) == len(steps[first].mine):
                    self._put(_joined(steps.pop(first)))
                    first += 1
        except BaseException as error:
            self._put(error)

    def _task(self, number: tuple[int, int], row: RowPlan) -> Task:
        uses: dict[tuple[int, int], Use] = {}
        if self._config.video.cache_dir:
            name = self._plan.fingerprint
            uses = {s: Use(run=name, step=now, next_step=again) for s, (now, again) in self._plan.uses(row).items()}
        return Task(number, row, uses=uses)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=_LOOK_SECONDS)
                return


def _joined(step: _Step) -> tuple[StepPlan, list[PackedRow], list[dict[str, Any]]]:
    """The rows in their order, whoever was first. Raises what reading one of them raised."""
    rows, records = [], []
    for place in range(len(step.mine)):
        result = step.results[place]
        if isinstance(result, Exception):
            raise result
        rows.append(result[0])
        records += result[1]
    return step.plan, rows, records
