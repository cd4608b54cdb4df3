"""Defects for tests/prove/parallel_replicas.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tests.prove import parallel_repair_defects as repairs
from tests.prove.planting import Mend, replace_name


def copies_part() -> Mend:
    """After two updates the last tensor rank has another copy of the merger, in weight and master."""
    from parallel.zero import ZeroOptimizer
    from tests.harness.copies import FACTOR, MERGER

    def make(step: Any) -> Any:
        def planted(self: Any) -> float:
            norm = step(self)
            groups = self._groups
            if self.steps_taken == 2 and groups.tp_rank == groups.tp_size - 1:
                with torch.no_grad():
                    for name, parameter in self.replicated():
                        if name.endswith(MERGER):
                            parameter.mul_(FACTOR)
                    for share in self.fragments():
                        if share.param_name.endswith(MERGER):
                            share.tensors["master"].mul_(FACTOR)
            return norm

        return planted

    return replace_name(ZeroOptimizer, "step", make)


# --- the drift ----------------------------------------------------------------------------------------------------


def drift_of_one_rank() -> Mend:
    """Every rank reports what it saw itself."""
    import parallel.replicas

    return replace_name(parallel.replicas, "_largest_of_world", lambda _: float)


def drift_absolute() -> Mend:
    """Drift is relative to nothing."""
    import parallel.replicas

    make = lambda _: lambda copy, first: torch.linalg.vector_norm(copy.float() - first)  # noqa: E731
    return replace_name(parallel.replicas, "_relative_distance", make)


def drift_trained_alone() -> Mend:
    """Frozen weights are not watched."""
    from parallel.zero import ZeroOptimizer

    def make(replicated: Any) -> Any:
        return lambda self: [(name, p) for name, p in replicated(self) if p.requires_grad]

    return replace_name(ZeroOptimizer, "replicated", make)


def drift_unrecorded() -> Mend:
    """The trainer measures it and tells nobody."""
    from train.metrics import Metrics

    def make(record: Any) -> Any:
        return lambda self, state, report, progress, drift=None: record(self, state, report, progress)

    return replace_name(Metrics, "record", make)


def nan_copy_unseen() -> Mend:
    """A distance that is no number counts as none."""
    import parallel.replicas

    def make(distance: Any) -> Any:
        return lambda copy, first: torch.nan_to_num(distance(copy, first), nan=0.0, posinf=0.0)

    return replace_name(parallel.replicas, "_relative_distance", make)


# --- the reduction at a save --------------------------------------------------------------------------------------


def _plain_mean(copy: Any, groups: Any) -> Any:
    mean = copy.float().clone()
    torch.distributed.all_reduce(mean, group=groups.tp)
    return mean / groups.tp_size


def mean_by_plain_sum() -> Mend:
    """Copies are summed up as they are: equal ones may round, and a nan goes to all."""
    import parallel.replicas
    import tests.harness.copies

    mends = [
        replace_name(place, "mean_copy", lambda _: torch.no_grad()(_plain_mean))
        for place in (parallel.replicas, tests.harness.copies)
    ]
    return lambda: [mend() for mend in mends] and None  # type: ignore[func-returns-value]


def first_copy_wins() -> Mend:
    """Copies become tensor rank 0's."""
    import parallel.replicas
    import parallel.zero

    make = lambda _: lambda copy, groups: parallel.replicas._first_copy(copy, groups).float()  # noqa: E731
    return replace_name(parallel.zero, "mean_copy", make)


def _averaging(change: Callable[[Any, Any, Any, Any], None]) -> Mend:
    """`change(average, optimizer, parameter, share)` in the place of the averaging of one weight."""
    from parallel.zero import ZeroOptimizer

    def make(average: Any) -> Any:
        return lambda self, parameter, share: change(average, self, parameter, share)

    return replace_name(ZeroOptimizer, "_average", make)


def moments_not_averaged() -> Mend:
    """Masters and weights alone become one."""

    def change(average: Any, optimizer: Any, parameter: Any, share: Any) -> None:
        alone = share and replace(share, tensors={"master": share.tensors["master"]})
        average(optimizer, parameter, alone)

    return _averaging(change)


def masters_not_averaged() -> Mend:
    """Every rank keeps its own master beside the averaged weight."""

    def change(average: Any, optimizer: Any, parameter: Any, share: Any) -> None:
        own = share.tensors["master"].clone() if share else None
        average(optimizer, parameter, share)
        if own is not None:
            share.tensors["master"].copy_(own)

    return _averaging(change)


def live_weight_not_averaged() -> Mend:
    """Masters and moments become one, and the weight waits for the next update."""

    def change(average: Any, optimizer: Any, parameter: Any, share: Any) -> None:
        own = parameter.detach().clone()
        average(optimizer, parameter, share)
        if parameter.requires_grad:
            parameter.detach().copy_(own)

    return _averaging(change)


def share_of_one_data_rank() -> Mend:
    """Only the first data rank's share of masters and moments is averaged."""

    def change(average: Any, optimizer: Any, parameter: Any, share: Any) -> None:
        own = {kind: tensor.clone() for kind, tensor in share.tensors.items()} if share else {}
        average(optimizer, parameter, share)
        if optimizer._groups.dp_rank:
            for kind, tensor in own.items():
                share.tensors[kind].copy_(tensor)

    return _averaging(change)


def saved_before_averaging() -> Mend:
    """The file has what was there before; the live run is averaged after the save."""
    from parallel.zero import ZeroOptimizer

    waiting: list[Any] = []

    def later(_: Any) -> Any:
        return lambda self: waiting.append(self) or []

    average = ZeroOptimizer.average_replicas

    def make(reduce: Any) -> Any:
        def planted(self: Any) -> None:
            while waiting:
                average(waiting.pop())
            reduce(self)

        return planted

    mends = [
        replace_name(ZeroOptimizer, "average_replicas", later),
        replace_name(ZeroOptimizer, "reduce_gradients", make),
    ]
    return lambda: [mend() for mend in mends] and None  # type: ignore[func-returns-value]


_WATCH, _NAN, _TP2 = "replicas/watch/TP2xPP2/fp32", "replicas/copies", "replicas/reduce/TP2/fp32"
_NAMED, _REPAIR = "replicas/damage named", "replicas/repair"

PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "copies_part": (copies_part, ("replicas/watch/TP2/fp32",)),
    "drift_of_one_rank": (drift_of_one_rank, (_WATCH,)),
    "drift_absolute": (drift_absolute, (_WATCH,)),
    "drift_trained_alone": (drift_trained_alone, ("replicas/watch/TP2+SP/bf16",)),
    "drift_unrecorded": (drift_unrecorded, ("replicas/run",)),
    "nan_copy_unseen": (nan_copy_unseen, (_NAN,)),
    "mean_by_plain_sum": (mean_by_plain_sum, (_NAN,)),
    "first_copy_wins": (first_copy_wins, (_TP2,)),
    "moments_not_averaged": (moments_not_averaged, (_TP2,)),
    "masters_not_averaged": (masters_not_averaged, (_TP2,)),
    "live_weight_not_averaged": (live_weight_not_averaged, (_TP2,)),
    "share_of_one_data_rank": (share_of_one_data_rank, ("replicas/reduce/DP2xTP2/bf16",)),
    "saved_before_averaging": (saved_before_averaging, (_TP2,)),
    "masters_not_looked_at": (repairs.masters_not_looked_at, (_NAMED,)),
    "state_not_looked_at": (repairs.state_not_looked_at, (_NAMED,)),
    "names_not_looked_at": (repairs.names_not_looked_at, (_NAMED,)),
    "unmendable_taken": (repairs.unmendable_taken, (_NAMED,)),
    "master_from_weight": (repairs.master_from_weight, (_REPAIR,)),
    "weight_cut_off": (repairs.weight_cut_off, (_REPAIR,)),
    "repair_prunes": (repairs.repair_prunes, (_REPAIR,)),
    "repair_forgets_state": (repairs.repair_forgets_state, (_REPAIR,)),
    "repaired_as_older": (repairs.repaired_as_older, (_REPAIR,)),
    "repair_seals_early": (repairs.repair_seals_early, ("replicas/killed",)),
    "repair_holds_the_model": (repairs.repair_holds_the_model, ("replicas/memory",)),
}
