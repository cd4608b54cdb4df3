"""Defects of the step: scales, reductions, what is frozen, attention, messages. Each breaks this process and returns
how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tests.prove.planting import Mend, replace_name


def _scaled_loss(factor: Callable[[Any, Any], float]) -> Mend:
    """Multiply what the schedule differentiates, and leave what it reports."""
    from parallel.schedule import Schedule

    def make(run: Any) -> Any:
        def planted(self: Any, microbatches: Any, lengths: Any, loss: Any, forward_only: bool = False) -> Any:
            def scaled(row: Any, output: Any) -> Any:
                scalar, report = loss(row, output)
                return scalar * factor(self, microbatches), report

            return run(self, microbatches, lengths, scaled, forward_only)

        return planted

    return replace_name(Schedule, "run", make)


def dp_scale() -> Mend:
    """The mean over the data axis is not undone."""
    return _scaled_loss(lambda schedule, _: 1.0 / schedule._groups.dp_size)


def microbatch_mean() -> Mend:
    """The loss is divided by the number of microbatches, as megatron-core does with a pair."""
    return _scaled_loss(lambda _, microbatches: 1.0 / len(microbatches))


def _finishing(change: Callable[..., tuple]) -> Mend:
    import parallel.zero

    return replace_name(
        parallel.zero, "finish_model_gradients", lambda finish: lambda *arguments: finish(*change(*arguments))
    )


def tied_reduction() -> Mend:
    """The two copies of a tied embedding keep their own gradients."""
    return _finishing(lambda parameters, tied, gradient, groups: (parameters, [], gradient, replace(groups, tied=None)))


def sequence_parallel_reduction() -> Mend:
    """Partial gradients of norms stay partial."""
    return _finishing(lambda parameters, tied, gradient, groups: ([], tied, gradient, groups))


def _merger_dropped(rank: int) -> Mend:
    from parallel.zero import ZeroOptimizer

    def make(reduce: Any) -> Any:
        def planted(self: Any) -> None:
            if self._groups.tp_size > 1 and self._groups.tp_rank == rank:
                for parameter, name in self._names.items():
                    if ".merger." in name and parameter.grad is not None:
                        parameter.grad.zero_()
            reduce(self)

        return planted

    return replace_name(ZeroOptimizer, "reduce_gradients", make)


def merger_gradient_rank0() -> Mend:
    """Tensor rank 0 loses the merger's gradient."""
    return _merger_dropped(0)


def merger_gradient_rank1() -> Mend:
    """Tensor rank 1 loses it."""
    return _merger_dropped(1)


def frozen_decay() -> Mend:
    """Weight decay reaches frozen parts."""
    from parallel.zero import ZeroOptimizer

    def make(step: Any) -> Any:
        def planted(self: Any) -> float:
            norm = step(self)
            with torch.no_grad():
                for parameter in self._module.parameters():
                    if not parameter.requires_grad:
                        parameter.mul_(1.0 - 1e-4)
            return norm

        return planted

    return replace_name(ZeroOptimizer, "step", make)


def nothing_frozen() -> Mend:
    """Frozen parts get gradients and optimizer state."""
    import tests.harness.layouts as layouts

    def make(build: Any) -> Any:
        return lambda config, parallel, groups, dtype, trainable: build(config, parallel, groups, dtype, config.parts)

    return replace_name(layouts, "build_model", make)


def frozen_tower_in_graph() -> Mend:
    """A frozen tower keeps what a backward pass would need."""
    from model.vision import VisionTower

    def make(forward: Any) -> Any:
        def planted(self: Any, patches: Any, grids: Any) -> Any:
            flags = [parameter.requires_grad for parameter in self.parameters()]
            self.requires_grad_(True)
            output = forward(self, patches, grids)
            for parameter, flag in zip(self.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)
            return output

        return planted

    return replace_name(VisionTower, "forward", make)


def swapped_norms() -> Mend:
    """The two norms of every layer change places at import."""
    import model.hf_read

    def make(hf_pieces: Any) -> Any:
        def planted(config: Any) -> Any:
            table = hf_pieces(config)
            one, other = "input_layernorm", "pre_mlp_layernorm"
            return {
                name: table[name.replace(one, other) if one in name else name.replace(other, one)] for name in table
            }

        return planted

    return replace_name(model.hf_read, "hf_pieces", make)


def _attention(change: Callable[[Any, Any], tuple[Any, bool]]) -> Mend:
    from model.attention import PackedAttention

    def make(by_length: Any) -> Any:
        def planted(self: Any, query: Any, key: Any, value: Any, segments: Any) -> Any:
            segments, causal = change(self, segments)
            was, self.causal = self.causal, causal
            try:
                return by_length(self, query, key, value, segments)
            finally:
                self.causal = was

        return planted

    return replace_name(PackedAttention, "_by_length", make)


def no_causal_mask() -> Mend:
    """Tokens see what comes after them."""
    return _attention(lambda self, segments: (segments, False))


def across_samples() -> Mend:
    """Tokens see the samples before theirs."""
    from model.attention import Segments

    def change(self: Any, segments: Any) -> tuple[Any, bool]:
        if not self.causal:
            return segments, False
        return Segments(lengths=(sum(segments.lengths),), device=segments.device), True

    return _attention(change)


def handshake() -> Mend:
    """Pipeline stages ask each other for shapes before every message."""
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    from parallel.schedule import AnnouncedCommunicator

    return replace_name(AnnouncedCommunicator, "_communicate_shapes", lambda _: P2PCommunicator._communicate_shapes)
