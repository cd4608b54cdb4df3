"""What DeepSpeed is given of a run: who is where in the grid, how gradients are kept, and no empty groups."""

import weakref
from typing import Any

import torch

from parallel.config import ParallelConfig
from parallel.groups import Groups


class Mpu:
    """The questions DeepSpeed asks about model parallelism, answered for one rank."""

    def __init__(self, groups: Groups) -> None:
        # DeepSpeed keeps the last of these in a global. Gloo groups that were held by it would keep their threads when
        # the layout is left, and one thread of each wakes a hundred times a second.
        self._reference = weakref.ref(groups)
        self.get_data_parallel_group = lambda: self._groups.dp
        self.get_data_parallel_rank = lambda: self._groups.dp_rank
        self.get_data_parallel_world_size = lambda: self._groups.dp_size
        # DeepSpeed sums norms over the "model parallel" group, so it must span tensor and pipeline.
        self.get_model_parallel_group = lambda: self._groups.replica
        self.get_model_parallel_rank = lambda: self._groups.pp_rank * self._groups.tp_size + self._groups.tp_rank
        self.get_model_parallel_world_size = lambda: self._groups.replica.size()
        self.get_tensor_model_parallel_group = lambda: self._groups.tp
        self.get_tensor_model_parallel_rank = lambda: self._groups.tp_rank
        self.get_tensor_model_parallel_world_size = lambda: self._groups.tp_size

    @property
    def _groups(self) -> Groups:
        groups = self._reference()
        assert groups is not None, "DeepSpeed asks about a layout that was left"
        return groups


def deepspeed_config(parallel: ParallelConfig, dp_size: int, clip_norm: float, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's settings for a run whose schedule owns forward and backward."""
    return {
        "train_batch_size": dp_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the schedule accumulates
        "gradient_clipping": clip_norm,
        "steps_per_print": None,
        "zero_optimization": {
            "stage": parallel.zero,
            "overlap_comm": False,
            "contiguous_gradients": False,  # else a whole bucket is held from the first backward on, filled or not
            "reduce_bucket_size": parallel.reduce_bucket_elements,
        },
        "bf16": {"enabled": bf16, "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",  # else bf16 runs would round the fp32 sums before they are averaged
    }


def placeholder(module: torch.nn.Module, number: int, groups: Groups) -> torch.nn.Parameter:
    """One element for a group that is empty on this pipeline stage, or has replicated parameters alone: AdamW refuses
    an empty list, and DeepSpeed runs a collective a group, so every rank must have the same groups."""
    parameter = torch.nn.Parameter(torch.zeros(1, device=groups.device, dtype=next(module.parameters()).dtype))
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]  # counted on each rank: its gradient is zero
    module.register_parameter(f"placeholder_{number}", parameter)
    return parameter
