"""Defects of launching, planted."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tests.prove.planting import Mend, replace_name
from train.checks import Check


def jobs_begin_anew() -> Mend:
    """A job that was put back in the queue is started as it was submitted."""
    from launch.jobs import torchrun

    return replace_name(torchrun, "resumed", lambda _: lambda arguments, run_dir, since: list(arguments))


def commits_not_seen() -> Mend:
    """What starts the ranks again takes a run for one without a commit."""
    from train.checkpoint import commits

    return replace_name(commits, "attempts", lambda _: lambda where: [])


def _always_fine(name: str) -> Callable[[], Mend]:
    def apply() -> Mend:
        from train import preflight

        def make(check: Any) -> Any:
            return lambda *given: replace(check(*given), ok=True)

        return replace_name(preflight, name, make)

    return apply


def first_rank_alone() -> Mend:
    """The other ranks do not hear what the first one has found."""
    import torch.distributed as dist

    def make(broadcast: Any) -> Any:
        def planted(objects: list[Any], src: int) -> None:
            broadcast(objects, src=src)
            if dist.get_rank() != src and isinstance(objects[0], list):
                objects[0] = []

        return planted

    return replace_name(dist, "broadcast_object_list", make)


def links_not_compared() -> Mend:
    """A slow link is shown, and nothing follows."""
    from train import preflight

    def make(checks: Any) -> Any:
        def planted(facts: Sequence[Any], device: str) -> list[Check]:
            return [replace(check, ok=True) for check in checks(facts, device)]

        return planted

    return replace_name(preflight, "link_checks", make)


PLANTS = {
    "jobs_begin_anew": (jobs_begin_anew, ("slurm/node",)),
    "commits_not_seen": (commits_not_seen, ("slurm/rank",)),
    "clocks_not_compared": (_always_fine("clock_check"), ("preflight/clock",)),
    "versions_not_compared": (_always_fine("versions_check"), ("preflight/code",)),
    "disk_not_counted": (_always_fine("disk_check"), ("preflight/disk",)),
    "folder_not_compared": (_always_fine("folder_check"), ("preflight/folder",)),
    "links_not_compared": (links_not_compared, ("preflight/link",)),
    "preflight_of_the_first_rank_alone": (first_rank_alone, ("preflight/files",)),
}
