"""Process groups of one rank, made by megatron-core and checked against our own rank arithmetic."""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from parallel.config import ParallelConfig
from parallel.grid import Grid


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
class Groups:
    """Coordinates and process groups of this rank.

    Every group carries gloo for CPU tensors beside NCCL for CUDA tensors where CUDA is used, so host integers travel
    without a device synchronisation.
    """

    grid: Grid
    rank: int
    dp_rank: int
    tp_rank: int
    pp_rank: int
    device: torch.device
    dp: dist.ProcessGroup
    """Ranks with the same weights and other data."""
    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    replica: dist.ProcessGroup
    """The tensor x pipeline ranks that hold one whole model."""
    tied: dist.ProcessGroup | None
    """First and last pipeline stage, which hold a tied embedding twice; None elsewhere."""
    megatron: ProcessGroupCollection

    @property
    def world_size(self) -> int:
        return self.grid.world_size

    @property
    def dp_size(self) -> int:
        return self.grid.dp_size

    @property
    def tp_size(self) -> int:
        return self.grid.tp_size

    @property
    def pp_size(self) -> int:
        return self.grid.pp_size

    @property
    def is_first_pipeline_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_pipeline_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def is_reader(self) -> bool:
        """Whether this rank reads the data of its replica: tensor rank 0 of the first pipeline stage."""
        return self.is_first_pipeline_stage and self.tp_rank == 0

    @property
    def reader_rank(self) -> int:
        """Global rank of this replica's reader."""
        return self.grid.rank(dp=self.dp_rank, tp=0, pp=0)


def make_groups(config: ParallelConfig, device: torch.device, seed: int) -> Groups:
    """Build the groups of an already initialised world. ValueError if the axes do not divide it."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    config.data_size(world_size)
    grid = Grid(world_size=world_size, tp_size=config.tensor, pp_size=config.pipeline)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor,
        pipeline_model_parallel_size=config.pipeline,
        create_gloo_process_groups=False,  # for a distributed optimizer that is not used here
        # megatron-core gives subgroups 30 minutes by default, whatever the world's own limit.
        distributed_timeout_minutes=max(1, round(timedelta(seconds=config.timeout_seconds).total_seconds() / 60)),
    )
    # The tracker must hold a state before sequence parallelism forks it; no layer here draws random numbers.
    model_parallel_cuda_manual_seed(seed)
    dp_rank, tp_rank, pp_rank = grid.coordinates(rank)
    assert (dp_rank, tp_rank, pp_rank) == (
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
    ), "our rank order differs from megatron-core's"
    return Groups(
        grid=grid,
        rank=rank,
        dp_rank=dp_rank,
        tp_rank=tp_rank,
        pp_rank=pp_rank,
        device=device,
        dp=parallel_state.get_data_parallel_group(),
        tp=parallel_state.get_tensor_model_parallel_group(),
        pp=parallel_state.get_pipeline_model_parallel_group(),
        replica=parallel_state.get_model_parallel_group(),
        tied=parallel_state.get_embedding_group()
        if config.pipeline > 1 and pp_rank in (0, config.pipeline - 1)
        else None,
        megatron=ProcessGroupCollection.use_mpu_process_groups(),
    )
