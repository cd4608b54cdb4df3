"""What a step sends, counted by hand for small examples; docs/parallelism.md shows these tables.

The model is that of tests/harness/layouts.py: a tower of 2 layers and a decoder of 4, both 64 wide, 301 words, in fp32.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from data.types import PackedRow
from parallel.config import ParallelConfig
from parallel.grid import Grid
from tests.harness.layouts import MODEL
from tests.harness.rows import GRIDS, PATCH_DIM, sized_row
from tests.harness.watch import Message, Watched
from train.batches import Counts

TOKENS = (32, 48, 64, 16)
"""Of each of the 4 rows; 160 in all."""
PICTURES = ((0,), (1, 3), (4,), ())
"""Of each row, by number; 24, 20, 16 and 0 patches, 60 in all, each of 1176 numbers."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one rank of a pipeline stage calls in a step for one purpose."""

    axis: str
    """Of tests/harness/watch.py, which has `kind` too."""
    kind: str
    calls: int
    nbytes: int
    """Of all calls together: of the whole tensor, where it is gathered or scattered."""
    purpose: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One step of stage 2 on a layout."""

    processes: int
    parallel: ParallelConfig
    by_stage: tuple[tuple[Line, ...], ...]
    """Lines of each pipeline stage; its ranks are alike."""


def example_rows() -> list[PackedRow]:
    """The rows of every example; replicas take them in turn."""
    generator, vocabulary = np.random.default_rng(0), MODEL.language.vocab_size
    return [
        sized_row(generator, vocabulary, tokens, [GRIDS[number] for number in numbers])
        for tokens, numbers in zip(TOKENS, PICTURES, strict=True)
    ]


def _line(axis: str, kind: str, calls: int, nbytes: int, purpose: str) -> Line:
    return Line(axis=axis, kind=kind, calls=calls, nbytes=nbytes, purpose=purpose)


# A row of T tokens is T x 64 fp32 numbers, T x 256 bytes; the 160 tokens of all rows are 40,960, and the tower's 60
# patches, 64 wide too, 15,360. 129 of the tokens are supervised.
_ROWS, _PATCHES, _TARGETS = 160 * 256, 60 * 256, 129

_ANNOUNCED = (
    _line("replica", "broadcast", 1, 4 * 7 * 8, "the table: 7 counts of each microbatch"),
    _line(
        "replica",
        "broadcast",
        1,
        841 * 8,
        "the payload: tokens, targets, positions, lengths, sources, grids, visual places",
    ),
)
_TOLD = _line(
    "world",
    "allreduce",
    1,
    (2 + 3 + 2) * 8,
    "whether gradients are finite on every rank, any is asked to end; squared norms of 3 parts, 2 times",
)
_ENDS = (
    _line("pp", "broadcast", 1, 2 * 8, "the loss, and that of each source, from the last pipeline stage"),
    _TOLD,
    _line("replica", "allreduce", 6, 6 * 4, "squared norms of the 6 groups of parameters"),
)
_HALF_LAYERS = (
    _line("tp", "allgather", 48, 12 * _ROWS, "2 decoder layers, 4 microbatches: 2 forward and 4 backward"),
    _line("tp", "reduce_scatter", 32, 8 * _ROWS, "2 decoder layers, 4 microbatches: 2 forward and 2 backward"),
)
_BETWEEN = (
    _line("pp", "send", 4, _ROWS // 2, "half of each microbatch, forward from the first stage, backward from the last"),
    _line("pp", "recv", 4, _ROWS // 2, "the same the other way round"),
    _line("tied", "allreduce", 1, 151 * 256, "gradient of the tied embedding, half of 301 words and one of padding"),
)
_TENSOR_AND_PIPELINE = (
    (
        *_ANNOUNCED,
        _line("tp", "broadcast", 3, 60 * 1176 * 4, "pixels of the 3 microbatches that have any"),
        _line("tp", "allgather", 36, 12 * _PATCHES, "2 tower layers, 3 microbatches: 2 forward and 4 backward"),
        _line("tp", "reduce_scatter", 24, 8 * _PATCHES, "2 tower layers, 3 microbatches: 2 forward and 2 backward"),
        _line("tp", "allgather", 6, 2 * _PATCHES, "the tower's output forward, its input's gradient backward"),
        _line("tp", "allreduce", 4, _ROWS, "embedded rows: each rank knows half of the words"),
        _line("tp", "allgather", 4, _ROWS, "gradient of the embedded rows"),
        *_HALF_LAYERS,
        *_BETWEEN,
        _line("tp", "allreduce", 1, 1024 * 4, "partial gradients of norms, and of biases behind row-parallel matrices"),
        *_ENDS,
    ),
    (
        *_ANNOUNCED,
        *_HALF_LAYERS,
        _line("tp", "allgather", 4, _ROWS, "the head's input"),
        _line("tp", "reduce_scatter", 4, _ROWS, "gradient of the head's input"),
        _line("tp", "allreduce", 12, 3 * _TARGETS * 4, "softmax over both halves: largest logit, target's logit, sum"),
        *_BETWEEN,
        _line("tp", "allreduce", 1, 320 * 4, "partial gradients of norms"),
        *_ENDS,
    ),
)
_TIED = _line("tied", "allreduce", 1, 301 * 256, "gradient of the tied embedding")
# megatron-core sends the two ways in two groups, so that neither waits for the other: here pp and world.
_INTERLEAVED = (
    (
        *_ANNOUNCED,
        _line("pp", "send", 12, 3 * _ROWS, "4 microbatches out of both chunks forward, out of the second backward"),
        _line("world", "recv", 12, 3 * _ROWS, "4 microbatches for the second chunk forward, for both backward"),
        _TIED,
        *_ENDS,
    ),
    (
        *_ANNOUNCED,
        _line("pp", "recv", 12, 3 * _ROWS, "4 microbatches for both chunks forward, for the first backward"),
        _line("world", "send", 12, 3 * _ROWS, "4 microbatches out of the first chunk forward, out of both backward"),
        _TIED,
        *_ENDS,
    ),
)
_PARAMETERS = 400_832
_REPLICAS = (
    (
        _line(
            "dp",
            "allreduce",
            1,
            (11 + 3 + 2 + 95) * 8,
            "11 counts of the step, 3 of each source, 2 waits for data, 95 counts of readers",
        ),
        _line("dp", "allreduce", 1, 2 * 8, "the loss, and that of each source"),
        _line("dp", "allreduce", 5, _PARAMETERS * 4, "gradients, in buckets of at most 100,000"),
        _TOLD,
        _line("dp", "allreduce", 6, 6 * 4, "squared norms of the 6 groups of parameters"),
        _line("dp", "allgather", 6, _PARAMETERS * 4, "updated weights of the 6 groups of parameters"),
    ),
)
EXAMPLES = {
    "TP2xPP2+SP": Example(
        processes=4,
        parallel=ParallelConfig(tensor=2, pipeline=2, sequence_parallel=True),
        by_stage=_TENSOR_AND_PIPELINE,
    ),
    "PP2 interleaved": Example(processes=2, parallel=ParallelConfig(pipeline=2, chunks=2), by_stage=_INTERLEAVED),
    "DP2": Example(processes=2, parallel=ParallelConfig(), by_stage=_REPLICAS),
}
"""Counted for 4 microbatches, of which a replica of the last has 2."""


def example_counts(lines: tuple[Line, ...]) -> dict[tuple[str, str], tuple[int, int]]:
    """(calls, bytes) by (axis, kind)."""
    return _summed([(line.axis, line.kind, line.calls, line.nbytes) for line in lines])


def counts_of(messages: list[Message]) -> dict[tuple[str, str], tuple[int, int]]:
    """The same of what was seen."""
    return _summed([(message.axis, message.kind, 1, message.nbytes) for message in messages])


def _summed(lines: list[tuple[str, str, int, int]]) -> dict[tuple[str, str], tuple[int, int]]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for axis, kind, calls, nbytes in lines:
        had = sums.get((axis, kind), (0, 0))
        sums[axis, kind] = (had[0] + calls, had[1] + nbytes)
    return sums


FAULTS = (
    "hidden states between stages, missing or beyond",
    "integers between stages",
    "broadcasts of integers beyond table and payload",
    "integers in them, missing or beyond",
    "pixels, missing on stage 0 or held elsewhere",
    "messages with pixels, missing or beyond",
)
"""What may be wrong in the messages of a step; a stage is one of the pipeline."""


def message_faults(
    parallel: ParallelConfig, rows: list[PackedRow], watched: list[Watched], hidden_size: int
) -> dict[str, int]:
    """How often each of FAULTS was seen in a step over `rows`. Everything due is counted from rows and axes alone."""
    grid = Grid(world_size=len(watched), tp_size=parallel.tensor, pp_size=parallel.pipeline)
    found = dict.fromkeys(FAULTS, 0)
    for rank, seen in enumerate(watched):
        dp_rank, _, pp_rank = grid.coordinates(rank)
        mine = rows[dp_rank :: grid.dp_size]
        hidden = [m for m in seen.messages if m.kind in ("send", "recv")]
        for kind, due in zip(("send", "recv"), hidden_states_due(parallel, mine, pp_rank, hidden_size), strict=True):
            sent = Counter(message.numel for message in hidden if message.kind == kind)
            found[FAULTS[0]] += ((sent - due) + (due - sent)).total()
        found[FAULTS[1]] += sum(message.is_integer for message in hidden)
        told = [m.numel for m in seen.messages if m.kind == "broadcast" and m.is_integer]
        announced = (
            (len(mine) * len(Counts._fields), _payload(parallel, mine))
            if parallel.tensor * parallel.pipeline > 1
            else ()
        )
        found[FAULTS[2]] += abs(len(told) - len(announced))
        found[FAULTS[3]] += abs(sum(told) - sum(announced))
        first = pp_rank == 0
        found[FAULTS[4]] += abs(seen.pixels - first * sum(row.patches.size for row in mine))
        shown = [m.numel for m in seen.messages if m.kind == "broadcast" and m.numel >= PATCH_DIM and not m.is_integer]
        due_shown = [row.patches.size for row in mine if len(row.patches)] if first and parallel.tensor > 1 else []
        found[FAULTS[5]] += abs(len(shown) - len(due_shown)) + (sorted(shown) != sorted(due_shown))
    return found


def hidden_states_due(
    parallel: ParallelConfig, rows: list[PackedRow], pp_rank: int, hidden_size: int
) -> tuple[Counter[int], Counter[int]]:
    """Numbers in each hidden state that a rank sends, and in each that it receives, with how often."""
    ways = parallel.tensor if parallel.sequence_parallel else 1
    sizes = Counter(-(-len(row.tokens) // ways) * hidden_size for row in rows)
    sent: Counter[int] = Counter()
    received: Counter[int] = Counter()
    for piece in range(parallel.num_pieces - 1):  # forward out of it into the next, backward from there into it
        before, after = piece % parallel.pipeline, (piece + 1) % parallel.pipeline
        for source, target in ((before, after), (after, before)):
            sent += sizes if source == pp_rank else Counter()
            received += sizes if target == pp_rank else Counter()
    return sent, received


def _payload(parallel: ParallelConfig, rows: list[PackedRow]) -> int:
    multiple = parallel.tensor if parallel.sequence_parallel else 1
    total = 0
    for row in rows:
        padding = -len(row.tokens) % multiple
        total += 5 * (len(row.tokens) + padding) + 2 * (len(row.segment_lengths) + (padding > 0))
        total += 3 * len(row.grids) + len(row.visual_index)
    return total
