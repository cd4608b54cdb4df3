"""Forward and backward of one step's microbatches: megatron-core's loop, told every shape beforehand.

With one pipeline stage the same call runs the microbatches one after the other; there is no second path.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import (
    forward_backward_no_pipelining,
    forward_backward_pipelining_with_interleaving,
    forward_backward_pipelining_without_interleaving,
    get_schedule_table,
)
from torch import Tensor

from parallel.groups import Groups
from parallel.place import Board
from parallel.stopwatch import Stopwatch


class AnnouncedCommunicator(P2PCommunicator):
    """Looks shapes up by microbatch number where megatron-core would exchange them before every message.

    `waited` runs while this rank is at a message: it waits there for its neighbours, and for little else.
    """

    def __init__(self, groups: Groups, config: Any) -> None:
        super().__init__(pp_group=groups.pp, config=config)
        self.waited = Stopwatch(groups.device)

    def announce(self, shapes: Sequence[tuple[int, int, int]], chunks: int, group_size: int) -> None:
        """Set the hidden-state shape of each microbatch of the coming step.

        Messages come in the order of megatron-core's schedule table. The first rank gets a chunk's inputs from the last
        one, and none for its first chunk; with gradients it is the other way round.
        """
        table = get_schedule_table(len(shapes), chunks, group_size)
        every = [shapes[microbatch] for microbatch, _ in table]
        around = [shapes[microbatch] for microbatch, chunk in table if chunk < chunks - 1]
        self._forward = iter(around if self.pp_group.rank() == 0 else every)
        self._backward = iter(around if self.pp_group.rank() == self.pp_group.size() - 1 else every)

    def _communicate(self, **message: Any) -> Any:
        with self.waited.running():
            return super()._communicate(**message)

    def _communicate_shapes(
        self, tensor_send_next: Tensor | None, tensor_send_prev: Tensor | None, recv_prev: bool, recv_next: bool
    ) -> tuple[Sequence[int], Sequence[int]]:
        forward_shape = backward_shape = (0, 0, 0)
        if recv_prev:
            forward_shape = next(self._forward)
        if recv_next:
            backward_shape = next(self._backward)
        return forward_shape, backward_shape


class Schedule:
    """Runs the microbatches of a step through this rank's chunks of the model."""

    def __init__(self, chunks: Sequence[torch.nn.Module], groups: Groups, board: Board | None = None) -> None:
        config: Any = chunks[0].config
        self._chunks = list(chunks)
        self._groups = groups
        self.board = board or Board()
        """Is told of every microbatch that goes forward or backward, and by the step of what comes after."""
        self._communicator = AnnouncedCommunicator(groups, config)
        self._whole, self._forwards = Stopwatch(groups.device), Stopwatch(groups.device)
        self._hidden_size: int = config.hidden_size
        self._group_size: int = config.microbatch_group_size_per_vp_stage
        self._slices = groups.tp_size if config.sequence_parallel else 1

    def run(
        self,
        microbatches: Sequence[Any],
        lengths: Sequence[int],
        loss: Callable[[Any, Tensor], tuple[Tensor, Tensor]],
        forward_only: bool = False,
    ) -> list[Tensor]:
        """Forward (and backward) every microbatch.

        Args:
            microbatches: what the module's forward takes, one a microbatch.
            lengths: tokens of each microbatch as announced, a multiple of the tensor axis under sequence parallelism.
            loss: (microbatch, module output) -> (scalar to differentiate, anything to report), on the last stage.

        Returns:
            The reports in microbatch order on the last pipeline stage, an empty list elsewhere.
        """
        shapes = [(length // self._slices, 1, self._hidden_size) for length in lengths]
        self._communicator.announce(shapes, len(self._chunks), self._group_size)

        def forward_step(data: Any, module: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], tuple]]:
            number, microbatch = next(data)
            self.board.tell("forward", number)
            with self._forwards.running():
                output = module(microbatch)
            if output.requires_grad:
                output.register_hook(lambda _: self.board.tell("backward", number))

            def sum_loss(token_losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                scalar, report = loss(microbatch, token_losses)
                # Three values: with two, megatron-core divides the loss by the number of microbatches.
                return scalar, torch.zeros((), dtype=torch.int), report

            return output, sum_loss

        self.seconds()  # of a step whose were not asked for
        with self._whole.running():
            return self._loop()(
                forward_step_func=forward_step,
                data_iterator=[iter(enumerate(microbatches)) for _ in self._chunks],
                model=self._chunks,
                num_microbatches=len(microbatches),
                seq_length=1,  # unused: shapes are announced
                micro_batch_size=1,
                forward_only=forward_only,
                p2p_communicator=self._communicator,
                pg_collection=self._groups.megatron,
            )

    def seconds(self) -> tuple[float, float]:
        """(waited for other pipeline stages, in all) of the last `run` on this rank, once its device is through it."""
        waited, whole, forward = self._communicator.waited.take(), self._whole.take(), self._forwards.take()
        self.board.spent.add("forward", forward)
        self.board.spent.add("backward", max(0.0, whole - waited - forward))
        return waited, whole

    def _loop(self) -> Callable[..., list[Tensor]]:
        if self._groups.pp_size == 1:
            return forward_backward_no_pipelining
        if len(self._chunks) == 1:
            return forward_backward_pipelining_without_interleaving
        return forward_backward_pipelining_with_interleaving
