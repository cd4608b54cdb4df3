"""What a rank tells its tensor group in a pass: which collectives, of how many bytes.

megatron-core 0.16.1, `tensor_parallel/layers.py` and `mappings.py`; tests/launch/planning/test_measured.py counts those
of real passes. For each transformer layer, and way:

    plain                 two all-reduces of hidden states: after attention and feed-forward, of gradients before them
    sequence parallel     two gathers and two scatters; backward of a layer that learns gathers the inputs of qkv and
                          fc1 again, unless messages are not overlapped
"""

from dataclasses import dataclass

from model.activations import FP32, Kernels, RowSizes
from model.config import ModelConfig
from parallel.config import ParallelConfig, Recompute


@dataclass(frozen=True, kw_only=True, slots=True)
class Messages:
    """Of one rank."""

    rounds: int = 0
    """Gathers, and scatters of a sum. An all-reduce is one of each."""
    nbytes: float = 0.0
    """Sent in them."""

    def __add__(self, other: "Messages") -> "Messages":
        return Messages(rounds=self.rounds + other.rounds, nbytes=self.nbytes + other.nbytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorAxis:
    """A model's layers on `parallel.tensor` ranks that have them together."""

    model: ModelConfig
    parallel: ParallelConfig
    kernels: Kernels
    trainable: tuple[str, ...]

    def input(self, row: RowSizes, backward: bool) -> Messages:
        """Of embedding and vision tower."""
        vision, split = self.model.vision, self.parallel.sequence_parallel
        hidden = self._embedded(row)
        if backward:
            said = self._parts(1, hidden) if split else Messages()
        else:
            said = self._all_reduces(1, hidden)
        if vision is None or not row.patches or (backward and "vision" not in self.trainable):
            return said
        patches = row.patches * vision.embed_dim * self.kernels.bytes_each
        said += self._blocks(vision.depth, "vision", self.parallel.recompute.vision, patches, backward)
        # Split before the blocks, gathered behind them; of the merger, which all ranks have, each takes its gradient.
        return said + self._parts(1, patches) if split else said

    def layers(self, number: int, row: RowSizes, backward: bool) -> Messages:
        """Of so many decoder layers."""
        return self._blocks(number, "language", self.parallel.recompute.language, self._embedded(row), backward)

    def head(self, row: RowSizes, backward: bool) -> Messages:
        """Of the head, and of the loss of logits of which each rank has some."""
        split = self.parallel.sequence_parallel
        if backward and not split:
            return self._all_reduces(1, row.targets * self.model.language.hidden_size * self.kernels.bytes_each)
        gathered = self._parts(1, self._embedded(row)) if split else Messages()
        # Greatest logit, the target's, and the sum of all: `VocabParallelCrossEntropy`.
        return gathered if backward else gathered + self._all_reduces(3, row.targets * FP32)

    def _embedded(self, row: RowSizes) -> int:
        return row.tokens * self.model.language.hidden_size * self.kernels.bytes_each

    def _blocks(self, number: int, part: str, recompute: Recompute, nbytes: int, backward: bool) -> Messages:
        ways = 2 if backward and recompute == "full" else 1
        if not self.parallel.sequence_parallel:
            return self._all_reduces(2 * ways * number, nbytes)
        again = 2 if backward and part in self.trainable and self.kernels.overlap else 0
        return self._parts((4 * ways + again) * number, nbytes)

    def _all_reduces(self, count: int, nbytes: float) -> Messages:
        return self._parts(2 * count, nbytes)

    def _parts(self, count: int, nbytes: float) -> Messages:
        """Gathers or scatters of `nbytes`, the parts of all ranks together."""
        tensor = self.parallel.tensor
        return Messages(rounds=count, nbytes=count * nbytes * (tensor - 1) / tensor)
