"""Defects for tests/prove/parallel_messages.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tests.prove import step_defects
from tests.prove.planting import Mend, replace_name


def pixels_to_every_stage() -> Mend:
    """Pixels go to the whole replica, and stages that have no use for them drop them."""
    import train.batches

    def make(_: Any) -> Any:
        def planted(pixels: Any, shape: Any, dtype: Any, groups: Any) -> Any:
            if shape[0] == 0:
                return None
            shared = pixels.to(dtype) if groups.is_reader else torch.empty(shape, dtype=dtype)
            dist.broadcast(shared, src=groups.reader_rank, group=groups.replica)
            return shared if groups.is_first_pipeline_stage else None

        return planted

    return replace_name(train.batches, "share_pixels", make)


def pixels_kept_by_every_stage() -> Mend:
    """The same, and every stage keeps them."""
    import train.batches

    def make(_: Any) -> Any:
        def planted(pixels: Any, shape: Any, dtype: Any, groups: Any) -> Any:
            if shape[0] == 0:
                return None
            shared = pixels.to(dtype) if groups.is_reader else torch.empty(shape, dtype=dtype)
            dist.broadcast(shared, src=groups.reader_rank, group=groups.replica)
            return shared

        return planted

    return replace_name(train.batches, "share_pixels", make)


def announced_one_by_one() -> Mend:
    """Every announcement says first how long it is."""
    import train.batches

    def make(announce: Any) -> Any:
        def planted(values: Any, count: int, groups: Any) -> Any:
            announce(None if values is None else torch.tensor([count]), 1, groups)
            return announce(values, count, groups)

        return planted

    return replace_name(train.batches, "announce_integers", make)


def padded_payload() -> Mend:
    """Rows are padded to a multiple of 8."""
    import train.batches

    return replace_name(train.batches, "_integers", lambda integers: lambda row, multiple: integers(row, 8))


def partial_gradients_one_by_one() -> Mend:
    """Partial gradients are summed tensor by tensor."""
    import parallel.gradients

    def make(_: Any) -> Any:
        def planted(tensors: Any, group: Any) -> None:
            for tensor in tensors:
                dist.all_reduce(tensor, group=group)

        return planted

    return replace_name(parallel.gradients, "_sum_in_one_message", make)


def gradients_reduced_twice() -> Mend:
    """Gradients are averaged over the data axis once more, which changes no number."""
    from parallel.zero import ZeroOptimizer

    def make(reduce: Any) -> Any:
        def planted(self: Any) -> None:
            reduce(self)
            for parameter in self._names:
                dist.all_reduce(torch.zeros_like(parameter), group=self._groups.dp)

        return planted

    return replace_name(ZeroOptimizer, "reduce_gradients", make)


def loss_from_every_stage() -> Mend:
    """The loss is agreed on twice."""
    import train.step

    def make(share: Any) -> Any:
        return lambda groups, values: share(groups, share(groups, values))

    return replace_name(train.step, "from_last_pipeline_stage", make)


def handshake_interleaved() -> Mend:
    """With every hidden state goes its shape, which the other side knows.

    By tags: megatron-core's own exchange of shapes cannot be tried here, with interleaving it never ends on gloo.
    """
    from parallel.schedule import AnnouncedCommunicator

    forward, backward = 1, 2
    under_way: list[Any] = []

    def make(announced: Any) -> Any:
        def planted(self: Any, to_next: Any, to_prev: Any, recv_prev: bool, recv_next: bool) -> Any:
            for sent, target, tag in ((to_next, self.next_rank, forward), (to_prev, self.prev_rank, backward)):
                if sent is not None:
                    shape = torch.tensor(sent.shape)
                    under_way.append((shape, dist.isend(shape, target, group=self.pp_group, tag=tag)))
            for due, source, tag in ((recv_prev, self.prev_rank, forward), (recv_next, self.next_rank, backward)):
                if due:
                    shape = torch.empty(3, dtype=torch.int64)
                    under_way.append((shape, dist.irecv(shape, source, group=self.pp_group, tag=tag)))
            return announced(self, to_next, to_prev, recv_prev, recv_next)

        return planted

    return replace_name(AnnouncedCommunicator, "_communicate_shapes", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "handshake_interleaved": (handshake_interleaved, ("messages/PP2 interleaved", "messages/PP4 interleaved")),
    "handshake_4": (step_defects.handshake, ("messages/PP4",)),
    "pixels_to_every_stage": (pixels_to_every_stage, ("messages/PP2",)),
    "pixels_kept_by_every_stage": (pixels_kept_by_every_stage, ("messages/TP2xPP2",)),
    "announced_one_by_one": (announced_one_by_one, ("messages/TP2+SP",)),
    "padded_payload": (padded_payload, ("messages/DP2xPP2 interleaved",)),
    "partial_gradients_one_by_one": (partial_gradients_one_by_one, ("messages/example TP2xPP2+SP",)),
    "gradients_reduced_twice": (gradients_reduced_twice, ("messages/example DP2",)),
    "loss_from_every_stage": (loss_from_every_stage, ("messages/example PP2 interleaved",)),
}
