"""What a call does on this rank, counted: a host that does other things changes seconds and not this."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one call."""

    flops: int
    """Of matrix products, forward and backward; torch counts a causal square in full."""
    sends: int
    """Messages to one other rank."""


def count(call: Callable[[], object]) -> Work:
    """Call it once, with attention in plain matrix products: the fused CPU kernel is not counted at all."""
    sends = _Sends()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops, sends:
        call()
    return Work(flops=flops.get_total_flops(), sends=sends.count)


class _Sends(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().startswith("c10d::send")
        return func(*args, **(kwargs or {}))
