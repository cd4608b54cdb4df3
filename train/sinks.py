"""Where metrics go beside the run's own files: wandb and TensorBoard. What fails there never ends a run."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from train.config import RunConfig
from train.shown import Shown

log = logging.getLogger(__name__)
TENSORBOARD = "tensorboard"
"""Folder in the run's."""
_COLUMNS = ("source", "sample", "prompt", "expected", "answer", "right", "loss")


class Sink(Protocol):
    """Takes numbers by name, and tables of samples."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def show(self, shown: Sequence[Shown], step: int) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """All that a run has. One that raises is told of and left alone from then on: the run's own files have it all."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._each(lambda sink: sink.log(numbers, step))

    def show(self, shown: Sequence[Shown], step: int) -> None:
        self._each(lambda sink: sink.show(shown, step))

    def close(self) -> None:
        self._each(lambda sink: sink.close())

    def _each(self, tell: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                tell(sink)
            except Exception as fault:  # a full disk, a lost network, an answer that nobody foresaw
                log.warning("%s is given up, metrics.jsonl goes on: %s: %s", name, type(fault).__name__, fault)
                del self._sinks[name]


def open_sinks(run: RunConfig, from_step: int, run_id: str | None) -> Sinks:
    """Those that the recipe asks for. One that cannot be opened is told of, and the run goes on without it.

    Args:
        from_step: steps behind it are written again, by this start.
        run_id: by which wandb knows the run when it is started again.
    """
    makers: dict[str, Callable[[], Sink]] = {}
    if run.log.wandb != "disabled":
        makers["wandb"] = lambda: WandbSink(run, run_id)
    if run.log.tensorboard:
        makers["tensorboard"] = lambda: TensorBoardSink(run, from_step)
    opened = {}
    for name, make in makers.items():
        try:
            opened[name] = make()
        except Exception as fault:
            log.warning("%s is not used, metrics.jsonl is: %s: %s", name, type(fault).__name__, fault)
    return Sinks(opened)


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, nested ones as sources/NAME/loss."""
    return dict(_numbers("", row))


def _numbers(before: str, row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{before}{key}/", value)
        elif isinstance(value, int | float):
            yield before + key, value


class WandbSink:
    """Offline it lies below the run's folder, for `wandb sync`."""

    def __init__(self, run: RunConfig, run_id: str | None) -> None:
        import wandb  # takes a second to import; most processes never need it

        self._wandb = wandb
        known = hashlib.blake2b(f"{run_id}/{run.stage.name}".encode(), digest_size=8).hexdigest()
        self._run = wandb.init(
            project=run.log.wandb_project,
            dir=run.run_dir,
            mode=run.log.wandb,
            id=known if run_id is not None else None,
            resume="allow" if run.log.wandb == "online" and run_id is not None else None,
            name=f"{Path(run.run_dir).name}-{run.stage.name}",
            config=asdict(run),  # a recipe holds no secrets
            settings=wandb.Settings(silent=True, console="off"),
        )
        # wandb's own step never goes back, which one that is done again after a resume would need.
        self._run.define_metric("*", step_metric="step")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def show(self, shown: Sequence[Shown], step: int) -> None:
        # A list of pictures in one cell would be kept as words.
        most = max(len(sample.pictures) for sample in shown)
        table = self._wandb.Table(columns=[*_COLUMNS, *(f"picture {place}" for place in range(most))])
        for sample in shown:
            pictures = [self._wandb.Image(picture) for picture in sample.pictures]
            missing = [None] * (most - len(pictures))
            table.add_data(*(getattr(sample, name) for name in _COLUMNS), *pictures, *missing)
        # Offline the pictures of a table lie in the user's own cache; these lie in the run's folder, with the words.
        beside = [
            self._wandb.Image(picture, caption=f"{sample.sample}: {sample.answer}")
            for sample in shown
            for picture in sample.pictures
        ]
        self._run.log({"samples": table, "sample_pictures": beside, "step": step})

    def close(self) -> None:
        self._run.finish()


class TensorBoardSink:
    """Event files in a folder of the run's."""

    def __init__(self, run: RunConfig, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purged = from_step + 1 if from_step else None  # hides what an earlier start wrote of steps that come again
        self._writer: Any = SummaryWriter(str(Path(run.run_dir) / TENSORBOARD), purge_step=purged)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def show(self, shown: Sequence[Shown], step: int) -> None:
        for number, sample in enumerate(shown):
            told = [f"{name}: {value}" for name in _COLUMNS if (value := getattr(sample, name)) is not None]
            # Its page takes text for Markdown, in which indented lines are what they are.
            text = "".join(f"    {line}\n" for line in "\n".join(told).splitlines())
            self._writer.add_text(f"samples/{number}", text, step)
            for place, picture in enumerate(sample.pictures):
                self._writer.add_image(f"samples/{number}/{place}", picture, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
