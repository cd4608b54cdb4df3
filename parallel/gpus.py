"""What is known of GPUs before one is there: vendors' data sheets, dense figures, SXM form where there are several."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU, and its links inside of a node."""

    name: str
    """As in the device's own name."""
    flops: float
    """bf16, dense, a second."""
    memory: float
    """Bytes, 1e9 a GB as sold; the driver shows somewhat more of some."""
    memory_bandwidth: float
    """Bytes a second."""
    link_bandwidth: float
    """Bytes a second to the other GPUs of a node, one direction."""


# NVIDIA's data sheets of the named products; NVLink is told there as the sum of both directions.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="B200", flops=2250e12, memory=180e9, memory_bandwidth=7.7e12, link_bandwidth=900e9),
        Gpu(name="H200", flops=989e12, memory=141e9, memory_bandwidth=4.8e12, link_bandwidth=450e9),
        Gpu(name="H100", flops=989e12, memory=80e9, memory_bandwidth=3.35e12, link_bandwidth=450e9),
        Gpu(name="H800", flops=989e12, memory=80e9, memory_bandwidth=3.35e12, link_bandwidth=200e9),
        Gpu(name="H20", flops=148e12, memory=96e9, memory_bandwidth=4.0e12, link_bandwidth=450e9),
        Gpu(name="A100", flops=312e12, memory=80e9, memory_bandwidth=2.0e12, link_bandwidth=300e9),
        Gpu(name="A800", flops=312e12, memory=80e9, memory_bandwidth=2.0e12, link_bandwidth=200e9),
    )
}


def known_gpu(device_name: str) -> Gpu | None:
    """The GPU that calls itself so (`NVIDIA H200`), None if it is none of these."""
    words = device_name.replace("-", " ").split()
    return next((gpu for name, gpu in GPUS.items() if name in words), None)
