"""Answers for the CUDA calls megatron-core makes unconditionally, on hosts without CUDA.

Each entry names its caller. Nothing here runs where CUDA exists; `world.distributed` is the only user.
"""

import functools
from typing import Any

import torch
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as tp_random


class _TorchOnCpu:
    """The torch module with `zeros(device="cuda")` sent to the CPU; every other name is torch's own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **kwargs)


@functools.cache
def answer_cuda_calls_on_cpu() -> None:
    """Make megatron-core run on CPU tensors; calling it again changes nothing."""
    assert not torch.cuda.is_available(), "a host with CUDA must not be patched"
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu  # type: ignore[assignment,return-value]  # buffers of p2p, rotary, layers
    torch.cuda.synchronize = lambda device=None: None  # type: ignore[assignment]  # after batched p2p
    torch.cuda.get_rng_state = lambda device="cpu": torch.get_rng_state()  # RNG tracker fork
    torch.cuda.random.get_rng_state = lambda device="cpu": torch.get_rng_state()
    torch.cuda.manual_seed = lambda seed: None  # seeding the RNG tracker
    # Without CUDA the original queues a callback per call in `_lazy_call` and the queue is never drained.
    tp_random._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: None
    schedules.torch = _TorchOnCpu()  # the schedules' token counter is zeros(device="cuda")
