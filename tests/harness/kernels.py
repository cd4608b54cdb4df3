"""Which of `parallel.kernels` a step really meets, and what norms in bf16 round."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import layers as megatron_layers

from model.attention import PackedAttention
from model.layers import ComposedLayerNorm, PlainRMSNorm
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import start
from train.state import TrainState
from train.step import train_step


@dataclass(frozen=True, kw_only=True)
class InUse:
    """What one rank's modules and optimizer are made of."""

    attention: set[bool]
    """Whether attention may be fused; both values if layers differ."""
    norms: set[str]
    adamw: bool
    pending: int
    """Messages of a step that were not waited for at once."""


def kernels_in_use(parallel: ParallelConfig) -> InUse:
    """One step of stage 2 on this rank; run it on every rank."""
    pending = 0

    def counted(send: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal pending
            pending += bool(more.get("async_op"))
            return send(*arguments, **more)

        return call

    gathering, scattering = "dist_all_gather_func", "dist_reduce_scatter_func"
    places: list[tuple[Any, str]] = [(dist, "all_reduce"), (megatron_layers, gathering), (megatron_layers, scattering)]
    originals = [getattr(place, name) for place, name in places]
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, "stage2", groups)
        modules = list(made.built.module.modules())
        for (place, name), original in zip(places, originals, strict=True):
            setattr(place, name, counted(original))
        try:
            train_step(made.parts, TrainState())
        finally:
            for (place, name), original in zip(places, originals, strict=True):
                setattr(place, name, original)
        made.optimizer.close()
    return InUse(
        attention={module.fused for module in modules if isinstance(module, PackedAttention)},
        norms={type(module).__name__ for module in modules if type(module).__name__.endswith("Norm")},
        adamw=made.optimizer._adamw.defaults["fused"],
        pending=pending,
    )


class _Config:
    params_dtype = torch.bfloat16
    sequence_parallel = False


def norm_rounding() -> float:
    """Relative error, by norm, of our norms' outputs in bf16 against fp64, of the norm farthest off."""
    generator = torch.Generator().manual_seed(0)
    x = (3.0 + torch.randn(512, 256, generator=generator)).bfloat16()
    wide = x.double()
    errors = []
    rms = PlainRMSNorm(_Config(), 256, 1e-6)  # type: ignore[arg-type]
    layer = ComposedLayerNorm(256, 1e-6, dtype=torch.bfloat16)
    centred = wide - wide.mean(-1, keepdim=True)
    for norm, value in ((rms, wide), (layer, centred)):
        with torch.no_grad():
            norm.weight.copy_(1.0 + 0.1 * torch.randn(256, generator=generator))
        due = value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.detach().double()
        errors.append(float((norm(x).detach().double() - due).norm() / due.norm()))
    return max(errors)
