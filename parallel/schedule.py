"""Forward and backward of one step's microbatches: megatron-core's loop, told every shape beforehand.

With one pipeline stage the same call runs the microbatches one after the other; there is no second path.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import (
    forward_backward_no_pipelining,
    forward_backward_pipelining_without_interleaving,
)
from torch import Tensor

from parallel.groups import Groups


class AnnouncedCommunicator(P2PCommunicator):
    """Looks shapes up by microbatch number where megatron-core would exchange them before every message."""

    def announce(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Set the hidden-state shape of each microbatch of the coming step."""
        self._shapes = shapes
        self._next_forward = 0
        self._next_backward = 0

    def _communicate_shapes(
        self, tensor_send_next: Tensor | None, tensor_send_prev: Tensor | None, recv_prev: bool, recv_next: bool
    ) -> tuple[Sequence[int], Sequence[int]]:
        forward_shape = backward_shape = (0, 0, 0)
        if recv_prev:
            forward_shape = self._shapes[self._next_forward]
            self._next_forward += 1
        if recv_next:
            backward_shape = self._shapes[self._next_backward]
            self._next_backward += 1
        return forward_shape, backward_shape


class Schedule:
    """Runs the microbatches of a step through one model."""

    def __init__(self, module: torch.nn.Module, groups: Groups) -> None:
        self._module = module
        self._groups = groups
        self._communicator = AnnouncedCommunicator(pp_group=groups.pp, config=module.config)  # type: ignore[arg-type]
        self._hidden_size: int = module.config.hidden_size  # type: ignore[union-attr,assignment]
        self._slices = groups.tp_size if module.config.sequence_parallel else 1  # type: ignore[union-attr]

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
        self._communicator.announce([(length // self._slices, 1, self._hidden_size) for length in lengths])

        def forward_step(data: Any, module: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], tuple]]:
            microbatch = next(data)
            output = module(microbatch)

            def sum_loss(token_losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                scalar, report = loss(microbatch, token_losses)
                # Three values: with two, megatron-core divides the loss by the number of microbatches.
                return scalar, torch.zeros((), dtype=torch.int), report

            return output, sum_loss

        run = (
            forward_backward_no_pipelining
            if self._groups.pp_size == 1
            else forward_backward_pipelining_without_interleaving
        )
        return run(
            forward_step_func=forward_step,
            data_iterator=iter(microbatches),
            model=self._module,
            num_microbatches=len(microbatches),
            seq_length=1,  # unused: shapes are announced
            micro_batch_size=1,
            forward_only=forward_only,
            p2p_communicator=self._communicator,
            pg_collection=self._groups.megatron,
        )
