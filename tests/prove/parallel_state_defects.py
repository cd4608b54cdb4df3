"""Defects for tests/prove/parallel_state.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from typing import Any

import torch

from tests.prove.planting import Mend, replace_name


def _after_building(hold: Callable[[Any], Any]) -> Mend:
    """The optimizer keeps something more from the start."""
    from parallel.zero import ZeroOptimizer

    def make(build: Any) -> Any:
        def planted(self: Any, *arguments: Any, **keywords: Any) -> None:
            build(self, *arguments, **keywords)
            self.held_by_plant = hold(self)

        return planted

    return replace_name(ZeroOptimizer, "__init__", make)


def frozen_state_kept() -> Mend:
    """Frozen parameters have a first moment."""
    return _after_building(
        lambda zero: [
            torch.zeros_like(parameter, dtype=torch.float32)
            for parameter in zero._module.parameters()
            if not parameter.requires_grad
        ]
    )


def unsharded_state() -> Mend:
    """Every rank has the masters of the others too."""
    return _after_building(
        lambda zero: [flat.new_zeros(flat.numel() * (zero._groups.dp_size - 1)) for flat in zero._flat_masters()]
    )


def gradient_copies_kept() -> Mend:
    """A copy of the gradients outlives the update."""
    from parallel.zero import ZeroOptimizer

    def make(reduce: Any) -> Any:
        def planted(self: Any) -> None:
            self.held_by_plant = [self.gradient(p).clone() for p in self._names if p.grad is not None]
            reduce(self)

        return planted

    return replace_name(ZeroOptimizer, "reduce_gradients", make)


def reduced_in_copies() -> Mend:
    """DeepSpeed lays groups of gradients end to end before it sends them, as it does by itself."""
    from parallel.zero import ZeroOptimizer

    def make(reduce: Any) -> Any:
        def planted(self: Any) -> None:
            alone = self._engine.buffered_allreduce_fallback
            self._engine.buffered_allreduce_fallback = lambda *_, **__: alone(elements_per_buffer=self._bucket_elements)
            reduce(self)

        return planted

    return replace_name(ZeroOptimizer, "reduce_gradients", make)


def _marked(change: Callable[[torch.nn.Parameter], None]) -> Mend:
    """Parameters tell DeepSpeed's norm something else about where they lie."""
    from parallel.zero import ZeroOptimizer

    def make(build: Any) -> Any:
        def planted(self: Any, module: torch.nn.Module, *arguments: Any, **keywords: Any) -> None:
            for parameter in module.parameters():
                change(parameter)
            build(self, module, *arguments, **keywords)

        return planted

    return replace_name(ZeroOptimizer, "__init__", make)


def replicated_counted_twice() -> Mend:
    """The norm has what every tensor rank holds once for each of them."""

    def change(parameter: torch.nn.Parameter) -> None:
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]

    return _marked(change)


def tied_counted_twice() -> Mend:
    """The norm has the tied embedding once for each of its copies."""

    def change(parameter: torch.nn.Parameter) -> None:
        parameter.ds_pipe_replicated = False  # type: ignore[attr-defined]

    return _marked(change)


def _configured(change: Callable[[dict[str, Any]], Any]) -> Mend:
    import parallel.zero

    def make(configure: Any) -> Any:
        def planted(*arguments: Any) -> dict[str, Any]:
            config = configure(*arguments)
            change(config)
            return config

        return planted

    return replace_name(parallel.zero, "deepspeed_config", make)


def nothing_clipped() -> Mend:
    """The norm is told and not used."""
    return _configured(lambda config: config.update(gradient_clipping=0.0))


def any_zero_stage() -> Mend:
    """The recipe's ZeRO stage is not looked at."""
    from parallel.config import ParallelConfig

    return replace_name(ParallelConfig, "__post_init__", lambda _: lambda self: None)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "frozen_state_kept": (frozen_state_kept, ("state/bytes/one process/bf16",)),
    "unsharded_state": (unsharded_state, ("state/bytes/DP2/bf16",)),
    "gradient_copies_kept": (gradient_copies_kept, ("state/bytes/DP2/fp32",)),
    "reduced_in_copies": (reduced_in_copies, ("state/bytes/DP2/bf16",)),
    "replicated_counted_twice": (replicated_counted_twice, ("state/norm/TP2",)),
    "tied_counted_twice": (tied_counted_twice, ("state/norm/PP2",)),
    "nothing_clipped": (nothing_clipped, ("state/norm/DP2",)),
    "any_zero_stage": (any_zero_stage, ("state/refused",)),
}
