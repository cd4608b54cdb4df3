"""`triptych resume`: start a run again from its newest usable checkpoint, on this layout or another."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.checkout import ROOT
from train.checkpoint.commits import RECIPE, Commit
from train.checkpoint.load import find_commit
from train.config import RunConfig
from train.resolve import RECIPES, compose

# What may change from one start to the next without another word: where and how fast a run goes, not what it learns.
FREE = (
    "run_dir",
    "resume",
    "stop_after_steps",
    "parallel.",
    "checkpoint.",
    "log.",
    "data.oss",  # how the store is reached; what lies there is compared with the index
    "data.prefetch_steps",
    "data.workers",
    "data.sample_seconds",
    "data.bad_share",
    "data.bad_in_row",
    "data.tokenizer",  # only its place: the index refuses another tokenizer
    "data.video.timeout_seconds",
    "data.video.timeout_per_second",
    "data.video.memory_bytes",
    "data.video.cache_dir",
    "data.video.cache_bytes",
)


class ResumeError(ValueError):
    """The run cannot go on as asked."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """How a run goes on."""

    commit: Commit
    run: RunConfig
    arguments: list[str]
    """Of launch/torchrun.sh."""
    processes: int | None
    """On this node; None leaves it to the launch script."""
    changed: list[str]
    """Every value that is another one than in the saved recipe."""

    @property
    def lines(self) -> list[str]:
        """From where it goes on, what changes, and the command that does it, for people."""
        saved_at = self.commit.state.get("saved_at", "an unknown time")
        return [
            f"going on after step {self.commit.step}, from {self.commit.path} of {saved_at}",
            *(f"  {line}" for line in self.changed or ["nothing changes against the saved recipe"]),
            shlex.join([*(f"{name}={value}" for name, value in self.environment.items()), *self.command]),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """What the launch script is told by variables: NPROC_PER_NODE, unless a cluster's job says how many nodes."""
        if self.processes is None or "NNODES" in os.environ or "NPROC_PER_NODE" in os.environ:
            return {}
        return {"NPROC_PER_NODE": str(self.processes)}

    @property
    def command(self) -> list[str]:
        """From the root of the checkout."""
        return ["launch/torchrun.sh", *self.arguments]


def plan_resume(
    run_dir: Path, overrides: Sequence[str] = (), *, allow: bool = False, processes: int | None = None
) -> Resume:
    """Find the newest usable checkpoint and the arguments that go on from it.

    Raises ResumeError (none is usable, an override changes the order of data, or what is learned and `allow` is not
    given) or RecipeError.
    """
    run_dir = run_dir.resolve()
    try:
        commit = find_commit(run_dir, tell=lambda reason: print(reason, file=sys.stderr))
    except ValueError as fault:
        raise ResumeError(str(fault)) from fault
    processes = processes or commit.state.get("world_size")
    saved = compose(Path(RECIPE).stem, folder=commit.path)
    given = [*_with_groups(overrides), "resume=true"]
    if saved.stop_after_steps is not None and saved.stop_after_steps <= commit.step and not _names_stop(overrides):
        given.append("stop_after_steps=null")  # that stop has been made
    if (ROOT / saved.run_dir).resolve() != run_dir:
        quoted = str(run_dir).replace("'", "\\'")  # Hydra reads = , ( and more in a bare value
        given.append(f"run_dir='{quoted}'")  # the folder was moved
    run = compose(Path(RECIPE).stem, given, folder=commit.path, world_size=processes)
    changed = list(changes(saved, run))
    moved = [line for line in changed if line.startswith("data.")]
    if moved and allow:
        raise ResumeError(
            f"the cursor of {run_dir.name} counts rows of its own data, so even --allow cannot change:"
            + "".join(f"\n  - {line}" for line in moved)
            + "\nleave them out, or start a new run with init.from_run"
        )
    if changed and not allow:
        raise ResumeError(
            f"these overrides would make {run_dir.name} another run from step {commit.step} on:"
            + "".join(f"\n  - {line}" for line in changed)
            + "\nleave them out, start a new run with init.from_run, or add --allow if that is meant"
        )
    arguments = ["--config-path", str(commit.path), "--config-name", Path(RECIPE).stem, *given]
    told = [line for line in changes(saved, run, of_no_matter=()) if not line.startswith("resume: ")]
    return Resume(commit=commit, run=run, arguments=arguments, processes=processes, changed=told)


def start(resume: Resume) -> None:
    """Become the launch script. Does not return."""
    print("\n".join(resume.lines), flush=True)
    script = str(ROOT / resume.command[0])
    environment = os.environ | {"PYTHON": sys.executable} | resume.environment
    os.execve(script, [script, *resume.arguments], environment)


def changes(saved: RunConfig, asked: RunConfig, of_no_matter: tuple[str, ...] = FREE) -> Iterator[str]:
    """One line for each value that differs, `of_no_matter` and places of sources left out: by default those that
    decide neither what is learned nor in which order data comes."""
    before, after = flatten(dataclasses.asdict(saved)), flatten(dataclasses.asdict(asked))
    for key in sorted({*before, *after}):
        was, now = before.get(key, "absent"), after.get(key, "absent")
        if was != now and not (of_no_matter and (key.startswith(of_no_matter) or _is_source_path(key))):
            yield f"{key}: {was} -> {now}"


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; items of lists by their place."""
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{place}]", item) for place, item in enumerate(value)]
    else:
        return {path: value}
    return {key: leaf for name, item in items for key, leaf in flatten(item, name).items()}


def _names_stop(overrides: Sequence[str]) -> bool:
    return any(text.lstrip("+").startswith("stop_after_steps=") for text in overrides)


def _is_source_path(key: str) -> bool:
    # Shards and indexes may move: the index is compared with the checkpoint's.
    return key.startswith("data.sources[") and key.endswith(("].path", "].index"))


def _with_groups(overrides: Sequence[str]) -> list[str]:
    """`parallel=tp2` picks a file of recipes/, over the saved recipe, which has no groups left."""
    groups = {entry.name for entry in RECIPES.iterdir() if entry.is_dir()}
    marked = [f"+{text}" if text.split("=", 1)[0] in groups else text for text in overrides]
    return marked if marked == list(overrides) else [f"hydra.searchpath=[file://{RECIPES}]", *marked]
