"""`triptych resume`: start a run again from its newest usable checkpoint, on this layout or another."""

import dataclasses
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.checkout import ROOT
from launch.jobs.changes import GROUPS, Change, changes
from train.checkpoint.commits import RECIPE, Commit, step_of
from train.checkpoint.fetch import find_or_fetch
from train.config import RunConfig
from train.resolve import RECIPES, check_saved, compose

FETCH_SECONDS = 3600.0
"""That a process waits for another one that fetches the same run's checkpoint, as those of other nodes do."""


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
    """On this node, where the launch script has to be told; None leaves it to its own variables."""
    changed: list[Change]
    """Every value that is another one than in the saved recipe, and what follows for the layout."""

    @property
    def lines(self) -> list[str]:
        """From where it goes on, what changes, and the command that does it, for people."""
        saved_at = self.commit.state.get("saved_at", "an unknown time")
        return [
            f"going on after step {self.commit.step}, from {self.commit.path} of {saved_at}",
            *(self._shown() or ["  nothing changes against the saved recipe"]),
            shlex.join([*(f"{name}={value}" for name, value in self.environment.items()), *self.command]),
        ]

    def _shown(self) -> list[str]:
        lines = []
        for group in GROUPS:
            of_it = [f"  {change}" for change in self.changed if change.group == group]
            opens = group == "data" and self.run.new_segment
            more = f", in a new segment of the plan from step {self.commit.step + 1} on" if opens else ""
            lines += [f"{group}{more}:", *of_it] if of_it else []
        return lines

    @property
    def environment(self) -> dict[str, str]:
        """What the launch script is told by variables."""
        return {} if self.processes is None else {"NPROC_PER_NODE": str(self.processes)}

    @property
    def command(self) -> list[str]:
        """From the root of the checkout."""
        return ["launch/torchrun.sh", *self.arguments]


def plan_resume(
    run_dir: Path, overrides: Sequence[str] = (), *, allow: Sequence[str] = (), processes: int | None = None
) -> Resume:
    """Find the newest usable checkpoint and the arguments that go on from it.

    Where none is left in the run's folder, it is fetched from where the run has uploaded it to. Its recipe is copied to
    RUN/recipe.yaml, from which the run starts: a job that is put back in the queue starts with the same words when the
    checkpoint itself was pruned.

    Args:
        allow: parts of the recipe, or keys, that may change what is learned or the order of data.
        processes: on this node; None is what the launch script's variables say, else as many as wrote the checkpoint.

    Raises ResumeError (none is usable; an override changes what `allow` does not name or nothing allows; `allow` names
    what does not change), RecipeError or OSError.
    """
    run_dir = run_dir.resolve()
    if step_of(run_dir.name) is not None:
        raise ResumeError(
            f"{run_dir} is a checkpoint and no run; say {run_dir.parent.parent} to go on with its run, or begin "
            f"another one with init.from={run_dir}"
        )
    try:
        commit = find_or_fetch(run_dir, None, FETCH_SECONDS, lambda reason: print(reason, file=sys.stderr))
    except ValueError as fault:
        raise ResumeError(str(fault)) from fault
    if "cursor" not in commit.state:
        raise ResumeError(
            f"{commit.path.name} of {run_dir.name} holds weights alone, as tools write them; begin a run with "
            f"init.from={run_dir}"
        )
    wrote = commit.state.get("world_size")
    told, world = _processes(processes, wrote)
    check_saved(commit.recipe)
    saved = compose(Path(RECIPE).stem, folder=commit.path)
    given = [*_with_groups(overrides), "resume=true"]
    if saved.stop_after_steps is not None and saved.stop_after_steps <= commit.step and not _names_stop(overrides):
        given.append("stop_after_steps=null")  # that stop has been made
    if (ROOT / saved.run_dir).resolve() != run_dir:
        quoted = str(run_dir).replace("'", "\\'")  # Hydra reads = , ( and more in a bare value
        given.append(f"run_dir='{quoted}'")  # the folder was moved
    run = compose(Path(RECIPE).stem, given, folder=commit.path, world_size=world)
    changed = [change for change in changes(saved, run) if change.key not in ("resume", "new_segment")]
    _refuse([change for change in changed if not change.is_free], allow, commit, run_dir)
    if parts := sorted({c.key.split(".")[1] for c in changed if c.group == "data" and not c.is_free}):
        given.append(f"new_segment=[{','.join(parts)}]")
        run = dataclasses.replace(run, new_segment=tuple(parts))
    arguments = ["--config-path", str(run_dir), "--config-name", Path(RECIPE).stem, *given]
    _keep_recipe(run_dir, commit.recipe)
    changed += _of_the_world(saved, wrote, run, world)
    return Resume(commit=commit, run=run, arguments=arguments, processes=told, changed=changed)


def _keep_recipe(run_dir: Path, text: str) -> None:
    """By rename: every node of a job does it, and ranks of another may be reading."""
    part = run_dir / f"{RECIPE}.{socket.gethostname()}.{os.getpid()}"
    part.write_text(text, encoding="utf-8")
    part.replace(run_dir / RECIPE)


def _processes(asked: int | None, wrote: int | None) -> tuple[int | None, int | None]:
    """(what the launch script has to be told, processes of the whole job if they are known)."""
    nodes, set_here = int(os.environ.get("NNODES", "1")), os.environ.get("NPROC_PER_NODE")
    if asked is None and set_here is not None and set_here.isdigit():
        return None, int(set_here) * nodes
    if asked is None and nodes > 1:
        return None, None  # the launch script counts the GPUs of each node
    here = asked or wrote
    return here, None if here is None else here * nodes


def _of_the_world(saved: RunConfig, wrote: int | None, run: RunConfig, world: int | None) -> list[Change]:
    """What another number of processes, or another split of them, means for the rows of a step."""
    if wrote is None or world is None or wrote % (saved.parallel.tensor * saved.parallel.pipeline):
        return []  # a commit that a tool wrote has another run's layout
    rows = [each.data.rows_per_step for each in (saved, run)]
    sizes = [saved.parallel.data_size(wrote), run.parallel.data_size(world)]
    said = [f"{size}, of {count} rows a step" for size, count in zip(sizes, rows, strict=True)]
    found = [Change(key="processes", was=wrote, now=world)] if wrote != world else []
    return found + ([Change(key="replicas", was=said[0], now=said[1])] if sizes[0] != sizes[1] else [])


def _refuse(changed: Sequence[Change], allow: Sequence[str], commit: Commit, run_dir: Path) -> None:
    """Raises ResumeError unless everything that changes may, and everything that is allowed changes."""
    never = [change for change in changed if change.never]
    if never:
        raise ResumeError(
            f"{commit.path.name} of {run_dir.name} cannot be gone on from with"
            + "".join(f"\n  - {change} ({change.never})" for change in never)
            + "\nleave them out, or start a new run with init.from_run"
        )
    asked = [change for change in changed if not change.is_allowed(allow)]
    if asked:
        flags = " ".join(f"--allow {key}" for key in dict.fromkeys(change.allowed_by for change in asked))
        segment = ", in a new segment of the data's plan" if any(change.group == "data" for change in asked) else ""
        raise ResumeError(
            f"these overrides would make {run_dir.name} another run from step {commit.step + 1} on:"
            + "".join(f"\n  - {change}" for change in asked)
            + f"\nleave them out, start a new run with init.from_run, or add {flags} if that is meant{segment}"
        )
    idle = [named for named in allow if not any(change.is_allowed([named]) for change in changed)]
    if idle:
        there = ", ".join(dict.fromkeys(change.allowed_by for change in changed)) or "nothing"
        raise ResumeError(
            f"--allow {' --allow '.join(idle)} names nothing that changes; what changes and needs it: {there}"
        )


def start(resume: Resume) -> None:
    """Become the launch script. Does not return."""
    print("\n".join(resume.lines), flush=True)
    script = str(ROOT / resume.command[0])
    environment = os.environ | {"PYTHON": sys.executable} | resume.environment
    os.execve(script, [script, *resume.arguments], environment)


def _names_stop(overrides: Sequence[str]) -> bool:
    return any(text.lstrip("+").startswith("stop_after_steps=") for text in overrides)


def _with_groups(overrides: Sequence[str]) -> list[str]:
    """`parallel=tp2` picks a file of recipes/, over the saved recipe, which has no groups left."""
    groups = {entry.name for entry in RECIPES.iterdir() if entry.is_dir()}
    marked = [f"+{text}" if text.split("=", 1)[0] in groups else text for text in overrides]
    return marked if marked == list(overrides) else [f"hydra.searchpath=[file://{RECIPES}]", *marked]
