"""What a run tells about itself: always a JSON line a step in `metrics.jsonl`; a terminal line; wandb if asked.

A step that was left out is told once more in `skipped.jsonl`, with the reason and the samples of every row. What
became of each checkpoint, and of each try to upload one, stands in `saves.jsonl`.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

from data.plan.plan import StepPlan, assign_rows, spread
from model.flops import step_flops
from train.checkpoint.contents import Outcome
from train.checkpoint.uploads import Upload
from train.config import RunConfig
from train.lines import Lines
from train.state import TrainState
from train.step import StepReport


class Metrics:
    """Written by one rank. Rates are over the time since the last line, so a slow start does not stay in them."""

    def __init__(
        self, run: RunConfig, peak_flops: float | None, from_step: int, from_progress: float, dp_size: int = 1
    ) -> None:
        """`peak_flops` is that of all devices together; `from_step` and `from_progress` are where a resumed run is."""
        folder = Path(run.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _go_on(folder / "metrics.jsonl", from_step)
        self._skipped = _go_on(folder / "skipped.jsonl", from_step)
        self._saves = _go_on(folder / "saves.jsonl", from_step)
        self._sources = [source.name for source in run.data.sources]
        self._every = run.log.every_steps
        self._stage = run.stage
        self._model = run.model
        self._peak = peak_flops
        self._dp_size = dp_size
        self._wandb = _start_wandb(run)
        self._from_progress = from_progress
        self._started = self._last = time.perf_counter()

    def record(
        self,
        state: TrainState,
        report: StepReport,
        progress: float,
        drift: float | None = None,
    ) -> None:
        """Write the step; every `log.every_steps` steps and at the end also a line on the terminal.

        Args:
            drift: how far copies of one weight have parted on tensor ranks, where it was measured.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        row: dict[str, Any] = {
            "stage": self._stage.name,
            "step": state.step,
            "loss": _finite(report.loss),
            "grad_norm": _finite(report.grad_norm),
            "rates": report.rates,
            "tokens": state.tokens,
            "samples": state.samples,
            "targets": report.targets,
            "step_tokens": report.work.tokens,
            "step_patches": report.work.patches,
            "tokens_per_second": report.work.tokens / seconds,
            "step_seconds": seconds,
            "data_seconds": report.data_seconds,
            "bad_samples": state.bad,
            "skipped": report.skipped,
            "rows": report.plan.digest(),
        }
        flops = step_flops(self._model, self._stage.trainable, report.work) if report.computed else 0
        flops_per_second = flops / seconds
        row["flops_per_second"] = flops_per_second
        row |= self._spreads(report.plan)
        row |= report.reading.metrics()
        if drift is not None:
            row["replica_drift"] = drift
        if self._peak:
            row["mfu"] = flops_per_second / self._peak
        self._file.write(json.dumps(row) + "\n")
        if report.skipped:
            self._record_skipped(state.step, report.skipped, report.plan)
        if self._wandb is not None:
            self._wandb.log(
                {key: value for key, value in row.items() if isinstance(value, int | float)}, step=state.step
            )
        if state.step % self._every == 0 or state.step == 1 or progress >= 1.0 or report.skipped:
            self._print(row, progress, now)

    def record_save(self, outcome: Outcome) -> None:
        """Write what became of a checkpoint."""
        row = {
            "step": outcome.step,
            "checkpoint": outcome.path.name,
            "fault": outcome.fault,
            "save_bytes": outcome.nbytes,
            "save_stall_seconds": outcome.stall_seconds,
            "save_seconds": outcome.write_seconds,
            "save_bytes_per_second": outcome.nbytes / max(outcome.write_seconds, 1e-9),
        }
        self._saves.write(json.dumps(row) + "\n")
        if self._wandb is not None:
            self._wandb.log({key: value for key, value in row.items() if key.startswith("save_")})

    def record_upload(self, upload: Upload) -> None:
        """Write what became of one try to upload a checkpoint."""
        sent = upload.sent
        row = {
            "step": upload.step,
            "checkpoint": upload.name,
            "fault": sent.fault,
            "upload_tries": upload.tries,
            "upload_files": sent.files,
            "upload_bytes": sent.nbytes,
            "upload_seconds": sent.seconds,
            "upload_bytes_per_second": sent.nbytes / max(sent.seconds, 1e-9),
        }
        self._saves.write(json.dumps(row) + "\n")
        if self._wandb is not None:
            self._wandb.log({key: value for key, value in row.items() if key.startswith("upload_")})

    def _spreads(self, plan: StepPlan) -> dict[str, float]:
        """How unevenly the step's work lies on the replicas, over all and of the vision tower."""
        mine = [[plan.rows[number] for number in numbers] for numbers in assign_rows(plan.rows, self._dp_size)]
        return {
            "load_spread": spread([sum(row.cost for row in rows) for rows in mine]),
            "visual_load_spread": spread([sum(row.num_patches for row in rows) for rows in mine]),
        }

    def _print(self, row: dict[str, Any], progress: float, now: float) -> None:
        done = progress - self._from_progress
        left = (now - self._started) / done * (1.0 - progress) if done > 0 else math.inf
        mfu = f"  mfu {row['mfu']:.1%}" if "mfu" in row else ""
        learned = f"skipped, {row['skipped']}"
        if not row["skipped"]:
            learned = f"loss {row['loss']:.4f}  norm {row['grad_norm']:.3f}"
        print(
            f"{row['stage']}  step {row['step']:>5}  {progress:>4.0%}  {learned}  "
            f"{row['tokens_per_second']:>7.0f} tokens/s{mfu}  {left:.0f} s left",
            flush=True,
        )

    def _record_skipped(self, step: int, reason: str, plan: StepPlan) -> None:
        rows = [[f"{self._sources[source]}:{index}" for source, index in row.samples] for row in plan.rows]
        told = {"stage": self._stage.name, "step": step, "reason": reason, "rows": rows}
        self._skipped.write(json.dumps(told) + "\n")

    def close(self) -> None:
        self._file.close()
        self._skipped.close()
        self._saves.close()
        if self._wandb is not None:
            self._wandb.finish()


def _finite(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None


def _go_on(path: Path, step: int) -> Lines:
    """A file of JSON lines, open after those that a run resumed at `step` still stands on."""
    return Lines(path, _lines_up_to(path, step))


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Lines of an earlier attempt that the resumed run still stands on: steps after its checkpoint are done again."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    # A host that was lost may leave half a line at the end.
    return [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]


def _start_wandb(run: RunConfig) -> Any:
    if run.log.wandb == "disabled":
        return None
    import wandb  # takes a second to import; most processes never need it

    return wandb.init(
        project=run.log.wandb_project,
        dir=run.run_dir,
        mode=run.log.wandb,
        name=f"{Path(run.run_dir).name}-{run.stage.name}",
        settings=wandb.Settings(silent=True, console="off"),
    )
