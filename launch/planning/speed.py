"""Seconds of a step: passes by their FLOPs and layers, messages by their number and bytes, put in order by
launch/planning/timeline.py.

Coarse on purpose: what it is for is comparing layouts, and telling days from weeks. What it takes from the hardware is
in `Machine`; `efficiency` is where a measured figure has its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from launch.planning.piece import Piece
from launch.planning.timeline import Pass, Timeline, simulate
from model.activations import FP32, RowSizes
from parallel.gpus import Gpu

_UPDATE_BYTES = 12 * FP32
"""Read and written for each element of a rank's share: the gradient for two norms, clipped; in AdamW gradient, master
and two moments in, the latter three out; the master once more, which goes into the weights."""


RESERVE_BYTES, RESERVE_SHARE = 3e9, 0.04
"""Of a GPU, left to the CUDA context, NCCL's buffers, libraries' workspaces, and to what the allocator cannot use
(ours, until measured)."""


def room_of(memory: float) -> float:
    """Bytes of a GPU of so many that a run may take."""
    return memory * (1 - RESERVE_SHARE) - RESERVE_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """GPUs, and how they reach each other."""

    gpu: Gpu
    gpus_per_node: int = 8
    network_bandwidth: float = 50e9
    """Bytes a second of one GPU to other nodes, one direction: 400 Gb/s."""
    efficiency: float = 0.55
    """Share of the data sheet's FLOPs that a pass reaches (ours, until measured: docs/performance.md)."""
    message_seconds: float = 10e-6
    """Of a message, however short (ours, until measured). An all-reduce is two."""
    layer_seconds: float = 0.0
    """Of a transformer layer's forward, or backward, however short the row. Nothing on a GPU, which computes while the
    next kernels are launched; a processor pays for each call."""

    overlaps: bool = True
    """Whether inputs that backward gathers again come while matrices are multiplied, so that nobody waits for them."""

    @property
    def room(self) -> float:
        """Bytes of a GPU that a run may take."""
        return room_of(self.gpu.memory)

    def bandwidth(self, span: int) -> float:
        """Bytes a second of neighbours in a group whose ranks are spread over `span` consecutive ranks of the world."""
        return self.gpu.link_bandwidth if span <= self.gpus_per_node else self.network_bandwidth


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes that a rank sends in a step, the one that sends most, by axis."""

    tensor: float
    pipeline: float
    data: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Of one optimizer step, in seconds."""

    timeline: Timeline
    """Of the replica that takes longest."""
    reduction: float
    """Gradients over the data axis, and weights back; before it those of a tied embedding, which two stages have."""
    update: float
    traffic: Traffic

    @property
    def seconds(self) -> float:
        return self.timeline.seconds + self.reduction + self.update


def step_time(
    pieces: Sequence[Piece], replicas: Sequence[Sequence[RowSizes]], trained: int, machine: Machine
) -> StepTime:
    """Of a step whose rows are given, replica by replica.

    Args:
        pieces: of the pipeline.
        trained: elements of the rank that trains most.
    """
    parallel, each, count = pieces[0].parallel, pieces[0].kernels.bytes_each, len(replicas)
    share = (count - 1) / count
    # An all-reduce of fp32 gradients, then an all-gather of weights in the model's dtype.
    data_bytes = trained * (2 * FP32 + each) * share
    tied_bytes = _tied_bytes(pieces[0])
    # Ranks are numbered tensor axis first, then data, then pipeline (parallel/grid.py).
    span = parallel.tensor * count
    between = machine.bandwidth(span * parallel.pipeline)
    lines = [(_timeline(pieces, rows, machine, between), rows) for rows in replicas]
    timeline, rows = max(lines, key=lambda line: line[0].seconds)
    # An all-reduce a bucket, and a gather.
    rounds = 2 * -(-trained // parallel.reduce_bucket_elements) + 1 if count > 1 else 0
    copied = _copied_bytes(trained, each, count)
    return StepTime(
        timeline=timeline,
        reduction=(
            data_bytes / machine.bandwidth(span)
            + tied_bytes / between
            + rounds * machine.message_seconds
            + copied / machine.gpu.memory_bandwidth
        ),
        update=trained / count * (_UPDATE_BYTES + each) / machine.gpu.memory_bandwidth,
        traffic=Traffic(
            tensor=_tensor_bytes(pieces, rows), pipeline=_pipeline_bytes(pieces, rows) + tied_bytes, data=data_bytes
        ),
    )


def _copied_bytes(trained: int, each: int, replicas: int) -> float:
    """Read and written of all gradients of a rank, beside what is sent. fp32: made flat; where they are reduced, into a
    bucket, divided there and back. Those of bf16 are flat in fp32 from the first: divided in place, zeroed at the end.
    """
    if each == FP32:
        return trained * FP32 * (2 / replicas + (6 if replicas > 1 else 0))
    return trained * FP32 * (1 + (2 if replicas > 1 else 0))


def _tied_bytes(first: Piece) -> float:
    """What the first pipeline stage, and the last, sends in an all-reduce of both: as much as it reduces."""
    language = first.model.language
    if first.parallel.pipeline == 1 or not language.tie_embeddings or "language" not in first.trainable:
        return 0.0
    return language.vocab_size * language.hidden_size * FP32 / first.parallel.tensor


def _timeline(
    pieces: Sequence[Piece], rows: Sequence[RowSizes], machine: Machine, pipeline_bandwidth: float
) -> Timeline:
    parallel = pieces[0].parallel
    stages, rate = parallel.pipeline, machine.gpu.flops * machine.efficiency
    inside = machine.bandwidth(parallel.tensor)
    known: dict[tuple[int, RowSizes, bool], float] = {}

    def seconds(rank: int, step: Pass) -> float:
        key = step.chunk * stages + rank, rows[step.microbatch], step.backward
        if key not in known:
            piece, row, backward = pieces[key[0]], key[1], key[2]
            said = piece.tensor_messages(row, backward, overlapped=not machine.overlaps)
            known[key] = piece.flops(row, backward) / rate + piece.block_passes(row, backward) * machine.layer_seconds
            known[key] += said.nbytes / inside + said.rounds * machine.message_seconds
        return known[key]

    def message_seconds(microbatch: int) -> float:
        return pieces[0].message_bytes(rows[microbatch]) / pipeline_bandwidth + machine.message_seconds

    return simulate(stages, parallel.chunks, len(rows), seconds, message_seconds)


def _tensor_bytes(pieces: Sequence[Piece], rows: Sequence[RowSizes]) -> float:
    stages = pieces[0].parallel.pipeline
    sent = [0.0] * stages
    for number, piece in enumerate(pieces):
        sent[number % stages] += sum(
            piece.tensor_messages(row, backward).nbytes for row in rows for backward in (False, True)
        )
    return max(sent)


def _pipeline_bytes(pieces: Sequence[Piece], rows: Sequence[RowSizes]) -> float:
    """Hidden states on, gradients back, of each piece; of two pipeline stages each has a piece at one end."""
    parallel = pieces[0].parallel
    if parallel.pipeline == 1:
        return 0.0
    sent = 2 * parallel.chunks - (parallel.pipeline == 2)
    return sent * sum(pieces[0].message_bytes(row) for row in rows)
