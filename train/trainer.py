"""One training stage from a typed run: build, start or go on, loop, save."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from data.loading.loader import Loader
from data.loading.pool import open_readers
from data.loading.rows import SourceIndex
from data.plan.plan import Cursor
from model.build import build_model
from parallel.collectives import any_of
from parallel.groups import Groups
from parallel.pace import Comparison
from parallel.replicas import largest_drift
from parallel.schedule import Schedule
from parallel.stop import Gathered
from parallel.stopwatch import Stopwatch
from parallel.watch import Watch
from parallel.world import peak_flops
from train.agreement import on_first_rank
from train.balance import settled_parallel, split_line
from train.batches import Batches, dtype_of, row_form
from train.checkpoint.commits import Commit
from train.checkpoint.contents import Outcome
from train.checkpoint.entries import writer_of
from train.checkpoint.generators import set_states, states
from train.checkpoint.load import load_optimizer
from train.checkpoint.run import RunCheckpoints
from train.config import RunConfig
from train.ending import clear_ending, write_ending
from train.errors import CheckpointError
from train.evaluator import Evaluator
from train.faults import sample_names
from train.first_weights import first_weights
from train.lock import RunLock
from train.metrics import Metrics
from train.optimizer import build_optimizer
from train.profiler import Profiler
from train.quarantine import Quarantine, go_on_from
from train.rates import stage_progress
from train.ready import open_sources
from train.rescue import Finished, finished, save_finished
from train.resolve import to_yaml
from train.segments import Course, course
from train.starts import this_start
from train.state import TrainState
from train.step import StepParts, train_step
from train.uploading import commit_to_resume, finish_uploads, open_uploads, run_id, tell_uploads


class Trainer:
    """Everything a stage needs on this rank. `fit` runs it to its end or to `stop_after_steps`."""

    def __init__(self, run: RunConfig, groups: Groups, watch: Watch) -> None:
        self.lock, commit = _begin(run)
        self.id = run_id(run)
        self.run = run
        self.groups = groups
        self.watch = watch
        self.stop = watch.stop
        self.bad = Quarantine(run.run_dir, groups.dp_rank)
        self.course, indexes, loader_from = _plan_data(run, groups, commit, self.bad)
        plan, cursor = self.course.plan, self.course.cursor
        parallel = settled_parallel(run, plan, indexes)
        if run.parallel.split == "auto" and parallel.split is not None and groups.rank == 0:
            print(split_line(run, parallel, plan, indexes), flush=True)
        self.model = build_model(run.model, parallel, groups, dtype_of(run), run.stage.trainable)
        # Weights come before the optimizer: its fp32 masters are made from them.
        self.chain = first_weights(run, self.model, groups, commit)
        self.optimizer = build_optimizer(run, self.model, groups)
        self.optimizer.stop = self.stop
        self.state = TrainState()
        if commit is not None:
            load_optimizer(commit, self.model.boxes, self.optimizer)
            self.state = TrainState(**commit.state["counters"])
        form, chunks = row_form(run), self.model.module.chunks
        self.evaluator = Evaluator(run, groups, chunks, watch.board, form)
        watch.names = sample_names(plan, groups.dp_size, self.evaluator.plan)
        self.profiler = Profiler(run, groups.rank)
        self.comparison = Comparison(groups.grid)
        self.batches = Batches(plan, loader_from(cursor) if groups.is_reader else None, groups, form, cursor)
        self.metrics: Metrics | None = None
        self.loss: float | None = None
        self.uploads = open_uploads(run, groups.rank, commit)
        self.checkpoints = RunCheckpoints(
            run.run_dir,
            dict(self.model.module.named_parameters()),
            self.model.boxes,
            self.optimizer,
            writer=writer_of(groups),
            frozen=[part for part in run.model.parts if part not in run.stage.trainable],
            keep=run.checkpoint.keep,
            commit_seconds=run.checkpoint.commit_seconds,
            keep_every=run.checkpoint.keep_every_steps,
            resumed=commit,
            tell=self._saved,
            uploads=self.uploads,
            seconds_left=lambda: self.stop.seconds_left,
        )
        set_states(commit, groups, run.seed, self.state.step)  # after all that may draw
        self.parts = StepParts(
            batches=self.batches,
            schedule=Schedule(chunks, groups, watch.board),
            optimizer=self.optimizer,
            groups=groups,
            stage=run.stage,
            skip_non_finite=run.optimizer.skip_non_finite,
            reducing=Stopwatch(groups.device),
        )

    def fit(self) -> None:
        """Train to the end of the stage, or to where the run is asked to end, which ends the process; save on the way
        as the recipe says, and at the end."""
        if self.groups.rank == 0:
            peak = peak_flops(self.groups.device)
            everywhere = peak * self.groups.world_size if peak is not None else None
            start = this_start(self.id, self.groups)
            self.metrics = Metrics(self.run, everywhere, self.state.step, self.progress, self.groups.dp_size, start)
            if self._is_over():
                print(f"{self.run.stage.name}: nothing left to do after step {self.state.step}", flush=True)
        try:
            with (
                self.watch.telling(),  # before anything is closed, which may take as long as what failed
                self.stop.serving(self.run.checkpoint.grace_seconds, self._rescue),
            ):
                while not self._ends():
                    self._take_step()
                saved = self._last_saved()
                self.watch.board.tell("end")  # which may take its time
                again = isinstance(saved, CheckpointError) or (self.stop.agreed and not self._is_over())
                told = f"step {self.state.step}{_where(saved) if again else ' was the last'}"
                if self.groups.rank == 0:  # whoever kills the run while it waits for the rest finds how it ended
                    write_ending(self.run.run_dir, "again" if again else "done", told, self.state.step)
                self.evaluator.finish(self.metrics, self.stop)
            finish_uploads(self.run, self.uploads, self.metrics, self.stop)
        finally:
            self.batches.close()
            self.bad.close()
            self.evaluator.close()
            self.profiler.close()
            if self.metrics is not None:
                self.metrics.close()
        if again:
            self.watch.stopped(told)

    def _last_saved(self) -> Outcome | CheckpointError | None:
        """What became of the last save. A failure is raised, unless the run has to end and there is a checkpoint that
        its next start goes on from."""
        try:
            return self.checkpoints.finish()
        except CheckpointError as fault:
            # A signal reaches ranks one after the other, and all have to leave alike.
            if not any_of(None, self.stop.heard) or self.checkpoints.newest is None:
                raise
            return fault

    def _take_step(self) -> None:
        cursor = self.batches.cursor
        self.watch.board.begin_step(self.state.step + 1, (cursor.window, cursor.row))
        self.stop.begin(self.state.step + 1, self._finished())
        with self.profiler.step(self.state.step + 1):
            report = train_step(self.parts, self.state)
        if self._is_over():
            self.stop.begin(self.state.step + 1, self._finished())
            self.stop.settle()
        self.stop.go_on()
        self.loss = report.loss if math.isfinite(report.loss) else self.loss
        self.watch.board.tell("record")
        drift = self._drift()
        if self.metrics is not None:
            self.metrics.record(self.state, report, self.progress, drift)
        self.checkpoints.poll()
        tell_uploads(self.uploads, self.metrics)
        self.evaluator.poll(self.metrics)
        every = self.run.checkpoint.every_steps
        if self._ends() or (every is not None and self.state.step % every == 0):
            self.save()
        if self.evaluator.is_due(self.state.step, self._is_over()) and not self.stop.agreed:
            # After the step's save, which is written meanwhile. A request to end need not wait for it.
            self.stop.begin(self.state.step + 1, self._finished())
            self.evaluator.evaluate(self.state.step, self.metrics, self.stop)
            self.stop.go_on()
        self.watch.board.spent.end_step()
        if self.metrics is not None and self.state.step % self.run.log.every_steps == 0:
            self.metrics.record_stragglers(self.state.step, self.comparison.slow(self.watch.paces()))

    @property
    def progress(self) -> float:
        return stage_progress(self.run.stage, self.state.step, self.state.tokens)

    def _is_over(self) -> bool:
        stop = self.run.stop_after_steps
        return self.progress >= 1.0 or (stop is not None and self.state.step >= stop)

    def _ends(self) -> bool:
        """Whether no step comes after this one; the same on every rank."""
        return self._is_over() or self.stop.agreed

    def _drift(self) -> float | None:
        """How far copies of one weight have parted on tensor ranks, as often as the terminal hears of the run."""
        if self.groups.tp_size == 1 or self.state.step % self.run.log.every_steps:
            return None
        return largest_drift([parameter for _, parameter in self.optimizer.replicated()], self.groups)

    def save(self) -> None:
        """Commit weights, optimizer, counters and data cursor together; copies that have parted become one first.

        The state is copied here and written while training goes on.
        """
        self.watch.board.tell("save")
        # The save before may still be under way. A request to end that comes meanwhile need not wait for it as well, so
        # the state may be held until all ranks have come here: one that went on alone could not be reached any more.
        now = self._finished()
        self.stop.begin(self.state.step + 1, now)
        self.checkpoints.settle()
        self.stop.admit(any_of(None, self.stop.asks()))
        averaged = self.optimizer.average_replicas()
        if averaged and self.groups.rank == 0:
            print(f"step {self.state.step}: averaged {len(averaged)} weights whose copies had parted", flush=True)
        started = time.perf_counter()
        self.checkpoints.save(now.step, now.told(), self._recipe(), now.records, now.random, last=self._ends())
        self.watch.board.spent.add("save", time.perf_counter() - started)

    def _told(self) -> Callable[[], dict[str, Any]]:
        """Makes what state.json says of the run as it is now."""
        return partial(self._words, self.state.to_dict(), self.batches.cursor, self.loss)

    def _words(self, counters: dict[str, Any], cursor: Cursor, loss: float | None) -> dict[str, Any]:
        return {
            "run": self.id,
            "stage": self.run.stage.name,
            "loss": loss,
            "counters": counters,
            **self.course.told(cursor),
            "chain": self.chain,
            "seed": self.run.seed,
            "world_size": self.groups.world_size,
        }

    def _recipe(self) -> str:
        """Without the segment that this start has begun: it is asked for anew or not at all."""
        return to_yaml(replace(self.run, new_segment=()))

    def _finished(self) -> Finished:
        records = list(self.bad.records) if self.groups.is_reader else []
        return finished(self.state.step, self._told(), states(self.groups), records, self.groups.device)

    def _rescue(self, state: Finished, gathered: Gathered) -> str:
        return save_finished(state, gathered, self.checkpoints, self._recipe(), self.groups.device)

    def _saved(self, outcome: Outcome) -> None:
        if outcome.fault is None:
            self.stop.save_seconds = outcome.stall_seconds + outcome.write_seconds
        if outcome.fault is not None and self.groups.rank == 0:
            ends = self._ends() or self.stop.dropped
            then = "" if ends else "; training goes on, and the next one is tried when it is due"
            print(
                f"the checkpoint of step {outcome.step} was not finished and counts for nothing: {outcome.fault}{then}",
                file=sys.stderr,
                flush=True,
            )
        if self.metrics is not None:
            self.metrics.record_save(outcome)
            self.evaluator.saved(outcome, self._is_over() and outcome.step == self.state.step)


def _begin(run: RunConfig) -> tuple[RunLock, Commit | None]:
    """The run's folder for this start alone, as it was at the checkpoint that the run goes on from."""
    lock = RunLock(run.run_dir)
    on_first_rank("locking the run's folder", lock.take, None)
    commit = commit_to_resume(run)
    on_first_rank("going on with the list of bad samples", lambda: go_on_from(run.run_dir, commit), None)
    on_first_rank("clearing the verdict", lambda: clear_ending(run.run_dir), None)
    return lock, commit


def _where(saved: Outcome | CheckpointError | None) -> str:
    if isinstance(saved, CheckpointError):
        return f" could not be saved: {saved}"
    return f" is saved in {saved.path.name}" if saved is not None else " had been saved"


def _plan_data(
    run: RunConfig, groups: Groups, commit: Commit | None, bad: Quarantine
) -> tuple[Course, list[SourceIndex], Callable[[Cursor], Loader]]:
    """Plan and indexes, which every rank follows, and how to start the loader, which only readers do."""
    tokenizer, indexes = open_sources(run)
    data = course(run.data, indexes, commit.state if commit else None, run.new_segment)

    def loader_from(cursor: Cursor) -> Loader:
        readers = open_readers(run.data, tokenizer, indexes)
        return Loader(run.data, data.plan, readers, groups.dp_rank, groups.dp_size, cursor, bad.keep)

    return data, indexes, loader_from
