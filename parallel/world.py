"""Start and end of a process's part in a world, and the device it computes on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed import distributed_c10d

from parallel.config import ParallelConfig
from parallel.cpu import answer_cuda_calls_on_cpu
from parallel.gpus import known_gpu
from parallel.groups import Groups, make_groups


def world_size_from_launcher() -> int:
    """Processes that torchrun started; 1 when started by hand."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pick_device() -> torch.device:
    """This process's own CUDA device, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of a known GPU (parallel/gpus.py), the denominator of MFU; None where it is not known."""
    gpu = known_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return gpu.flops if gpu is not None else None


@contextmanager
def distributed(config: ParallelConfig, seed: int) -> Iterator[Groups]:
    """Join the world that torchrun describes (or a world of one), with its groups, and leave it on the way out.

    Raises ValueError before any process group is made if the axes do not divide the world.
    """
    config.data_size(world_size_from_launcher())
    with joined_world(config.timeout_seconds) as device, model_parallel(config, device, seed) as groups:
        yield groups


@contextmanager
def joined_world(timeout_seconds: float) -> Iterator[torch.device]:
    """The default process group of this process, and the device it computes on."""
    device = pick_device()
    timeout = timedelta(seconds=timeout_seconds)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        answer_cuda_calls_on_cpu()
        backend = "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def model_parallel(config: ParallelConfig, device: torch.device, seed: int) -> Iterator[Groups]:
    """The groups of one layout in a world that is already joined; tests run several layouts in one world."""
    known = set(distributed_c10d._world.pg_map)
    try:
        yield make_groups(config, device, seed)
    finally:
        parallel_state.destroy_model_parallel()
        # megatron-core only forgets its groups: some fifty threads a layout would stay, and spin once a peer is gone.
        # In the order in which they were made, which is the same on all ranks.
        for group in [group for group in distributed_c10d._world.pg_map if group not in known]:
            dist.destroy_process_group(group)


@contextmanager
def imagined_rank(config: ParallelConfig, world_size: int, rank: int) -> Iterator[Groups]:
    """Groups of any rank of a world that does not exist, on the meta device: what a rank would hold costs no memory.

    For processes that have not joined a world. Collectives on these groups do nothing.
    """
    assert not dist.is_initialized(), "a process stands for another rank only while it is in no world of its own"
    if not torch.cuda.is_available():
        answer_cuda_calls_on_cpu()
    dist.init_process_group("fake", rank=rank, world_size=world_size)
    try:
        with model_parallel(config, torch.device("meta"), seed=0) as groups:
            yield groups
    finally:
        dist.destroy_process_group()
