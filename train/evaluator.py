"""When a run is evaluated, and what becomes of it: held-out losses in the run, answers and a command beside it."""

from typing import Any

from data.plan.plan import Plan
from parallel.groups import Groups
from parallel.place import Board
from parallel.stop import Stop
from train.agreement import slowly_on_first_rank
from train.batches import RowForm
from train.beside import Beside
from train.checkpoint.contents import Outcome
from train.config import RunConfig
from train.evaluate import Evaluation
from train.metrics import Metrics


class Evaluator:
    """The evaluations of one start of a run. All ranks make one; with no `evaluate.every_steps` it does nothing."""

    def __init__(self, run: RunConfig, groups: Groups, chunks: Any, board: Board, form: RowForm) -> None:
        self._every = run.evaluate.every_steps
        self._evaluation = Evaluation(run, groups, chunks, board, form) if self._every is not None else None
        asked = run.evaluate.answers or run.evaluate.command
        self._beside = Beside(run) if asked and self._every is not None and groups.rank == 0 else None
        self._waits = bool(asked) and self._every is not None and run.evaluate.wait_seconds != 0
        # At most two are there, the one under way and the newest; each has its own limit.
        limit, wanted = 2 * run.evaluate.command_seconds, run.evaluate.wait_seconds
        self._wait_seconds = limit if wanted is None else wanted

    @property
    def plan(self) -> Plan | None:
        """Of the held-out samples."""
        return self._evaluation.plan if self._evaluation is not None else None

    def is_due(self, step: int, is_last: bool) -> bool:
        """Whether a step is followed by an evaluation."""
        return self._every is not None and (is_last or step % self._every == 0)

    def evaluate(self, step: int, metrics: Metrics | None, stop: Stop) -> None:
        """Measure and record held-out losses. Left off, with no record, where the run is asked to end meanwhile."""
        assert self._evaluation is not None
        found = self._evaluation.losses(lambda: stop.heard)
        if found is not None and metrics is not None:
            metrics.record_evaluation(step, found.losses, targets=found.targets, bad=found.bad, seconds=found.seconds)

    def saved(self, outcome: Outcome, is_last: bool) -> None:
        """A checkpoint is finished: answers and command of its step can begin. On rank 0."""
        if self._beside is not None and outcome.fault is None and self.is_due(outcome.step, is_last):
            self._beside.start(outcome.path, outcome.step)

    def poll(self, metrics: Metrics | None) -> None:
        """Record what has ended beside the run. Waits for nothing."""
        for told in self._beside.poll() if self._beside is not None else ():
            if metrics is not None:
                metrics.record_beside(told)

    def finish(self, metrics: Metrics | None, stop: Stop) -> None:
        """Wait for what is still beside the run as long as the recipe says, but not for a run that is asked to end. All
        ranks call it, and all wait: torchrun of a node whose ranks have ended leaves after five minutes, maybe with the
        job's store, and the ranks that are left would be ended for it."""
        if self._waits:
            slowly_on_first_rank("waiting for evaluations", lambda _: self._finish(metrics, stop), self._wait_seconds)
        else:
            self._finish(metrics, stop)

    def _finish(self, metrics: Metrics | None, stop: Stop) -> None:
        if self._beside is None:
            return
        if self._waits and not stop.heard and (steps := self._beside.steps):
            which = " and ".join(map(str, steps))
            print(f"waiting at most {self._wait_seconds:g} s for what runs beside the run, of step {which}", flush=True)
        self._beside.wait(self._wait_seconds, lambda: stop.heard)
        self.poll(metrics)

    def close(self) -> None:
        """End what is still running beside the run."""
        if self._beside is not None:
            self._beside.close()
