"""A fault at every place of a save on every rank, fifty kills in a row, a hundred damaged files (item 4)."""

from pathlib import Path

from tests.harness import run_faults, save_faults
from tests.harness.lives import run_config
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context

RANKS = 2
KILLS = 50
DAMAGES = 100
SHORT_STEPS, SHORT_KILLS = 20, 3
"""For the sample in the tests, and for plants."""


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {"fault/places": _places()}
    found |= {
        f"fault/{kind}/rank {rank}/{place}": _fault(rank, place, kind)
        for rank in range(RANKS)
        for place in save_faults.places(rank, RANKS)
        for kind in save_faults.KINDS
    }
    found |= {"kills": _kills(KILLS, run_faults.KILLED_STEPS), "damage": _damage(DAMAGES)}
    return found


def short_cases() -> dict[str, Case]:
    """A fault of each kind on each rank, few kills, few damages: the sample in the tests."""
    chosen = {"SIGKILL": (0, "rename to PRUNED"), "disk full": (1, "write optimizer.00001.safetensors")}
    chosen |= {"I/O error": (0, "rename to COMMIT"), "hang": (1, "fsync vision.00001.safetensors")}
    found = {f"fault/{kind}": _fault(rank, place, kind) for kind, (rank, place) in chosen.items()}
    return {"fault/places": _places(), **found, "kills": _kills(SHORT_KILLS, SHORT_STEPS), "damage": _damage(20)}


def _undisturbed(context: Context) -> tuple[Path, list[tuple[str, ...]]]:
    folder = context.scratch / "faults"
    made = context.keep(
        "undisturbed", lambda: run_faults.passed_places(context.worlds.nursery, folder, context.data, context.plant)
    )
    return folder, made


def _places() -> Case:
    names = tuple(f"rank {rank}: places of a save that this table lacks, or has too many" for rank in range(RANKS))

    def run(context: Context) -> list[Cell]:
        _, passed = _undisturbed(context)
        return [
            Cell(
                name=name,
                measured=len(set(passed[rank]) ^ set(save_faults.places(rank, RANKS))),
                limit=0,
                unit=f"of {len(passed[rank])} places",
            )
            for rank, name in enumerate(names)
        ]

    return Case(item=4, names=names, run=run)


def _fault(rank: int, place: str, kind: str) -> Case:
    name = f"{kind} on rank {rank} at `{place}`: tensors and steps unlike the undisturbed run's"

    def run(context: Context) -> list[Cell]:
        folder, _ = _undisturbed(context)
        config = run_faults.fault_run(folder / f"run{len(list(folder.iterdir()))}", context.data)
        undisturbed, nursery = folder / "undisturbed", context.worlds.nursery
        found = run_faults.struck_run(nursery, undisturbed, config, rank, place, kind, context.plant)
        assert found.came, "the fault never came"
        return [Cell(name=name, measured=found.unlike, limit=0, unit=found.outcome)]

    return Case(item=4, names=(name,), run=run)


def _kills(kills: int, steps: int) -> Case:
    title = f"a run of {steps} steps, both its ranks killed {kills} times in a row"
    names = tuple(
        f"{title}: {what}"
        for what in (
            "kills that came too late",
            "kills in a save fewer than one in ten, by",
            "tensors of weights that differ by a bit",
            "tensors of masters and moments that do",
            "steps on other samples",
            "steps with another loss, norm or rate",
        )
    )

    def run(context: Context) -> list[Cell]:
        folder = context.scratch / f"kills{kills}"
        found = run_faults.killed_run(context.worlds.nursery, folder, context.data, kills, steps, context.plant)
        apart = found.difference
        late, few = kills - found.kills, max(0, kills // 10 - found.while_saving)
        values = (late, few, apart.weights, apart.state, apart.rows, apart.curves)
        units = (
            "kills",
            f"kills: {found.while_saving} were",
            *(f"of {apart.tensors}",) * 2,
            *(f"of {apart.steps}",) * 2,
        )
        return [
            Cell(name=name, measured=value, limit=0, unit=unit)
            for name, value, unit in zip(names, values, units, strict=True)
        ]

    return Case(item=4, names=names, run=run)


def _damage(damages: int) -> Case:
    names = (
        f"{damages} flips and truncations in the newest commit: gone on from all the same",
        f"{damages} flips and truncations in the newest commit: gone on from another than the one before",
    )

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS["DP2"]
        run = run_config(context.scratch / "sound", context.data, "stage3", parallel, steps=3)
        run_faults.well(context.worlds.nursery.live(run, size))
        scratch = context.scratch / f"damage{damages}"
        values = context.run_here(
            run_faults.believed_damage, run_dir=Path(run.run_dir), scratch=scratch, damages=damages
        )
        return [
            Cell(name=name, measured=value, limit=0, unit="commits") for name, value in zip(names, values, strict=True)
        ]

    return Case(item=4, names=names, run=run)
