"""A run of layers on one rank: what a row leaves there, what a pass takes beside it, computes and sends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launch.planning.messages import Messages, TensorAxis
from model.activations import FP32, Kernels, RowSizes, decoder_layer_bytes, head_bytes, row_bytes, tower_bytes
from model.config import ModelConfig
from model.flops import part_flops
from parallel.config import ParallelConfig, RecomputeConfig


def cut(
    model: ModelConfig, parallel: ParallelConfig, kernels: Kernels, trainable: Sequence[str], split: Sequence[int]
) -> list["Piece"]:
    """The pieces of a pipeline, in the model's order; piece i lies on pipeline stage i % pipeline."""
    return [
        Piece(
            model=model,
            parallel=parallel,
            kernels=kernels,
            trainable=tuple(trainable),
            layers=layers,
            is_first=number == 0,
            is_last=number == len(split) - 1,
        )
        for number, layers in enumerate(split)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """On one of `parallel.tensor` ranks that have it together."""

    model: ModelConfig
    parallel: ParallelConfig
    kernels: Kernels
    trainable: tuple[str, ...]
    layers: int
    """Of the language model."""
    is_first: bool
    is_last: bool

    def saved(self, row: RowSizes) -> int:
        """Bytes that wait for backward."""
        return row_bytes(
            self.model,
            row,
            self.parallel,
            self.kernels,
            self.trainable,
            layers=self.layers,
            is_first=self.is_first,
            is_last=self.is_last,
        )

    def beside(self, row: RowSizes, backward: bool) -> int:
        """Bytes beside those of `saved` that a pass has at most, at its worst moment: what it computes with less what
        is freed by then or not yet made."""
        saved = self.saved(row)
        tower, head = self._tower_saved(row), self._head_saved(row)
        if not saved:
            return max(self._tower_work(row, False), self._layer_work(row, False), self._head_work(row, False))
        if not backward:
            return max(self._tower_work(row, False) + tower - saved, self._head_work(row, False))
        return max(
            self._head_work(row, True),
            self._layer_work(row, True) - head,
            self._tower_work(row, True) + tower - saved if tower else 0,
        )

    def _tower_saved(self, row: RowSizes) -> int:
        if not (self.is_first and self.model.vision and row.patches and "vision" in self.trainable):
            return 0
        return tower_bytes(self.model.vision, row, self.parallel, self.kernels)

    def _head_saved(self, row: RowSizes) -> int:
        if not self.is_last or not self.saved(row):
            return 0
        return head_bytes(self.model.language, row, self.parallel, self.kernels, "language" in self.trainable)

    def _head_work(self, row: RowSizes, backward: bool) -> int:
        """Logits in the model's dtype beside those in fp32, or gradients of the head's weight and input.

        Nothing keeps what the last norm has given, nor a frozen head what it takes of that; forward has both.
        """
        if not self.is_last:
            return 0
        language, each = self.model.language, self.kernels.bytes_each
        vocabulary = -(-language.vocab_size // self.parallel.tensor)
        logits = row.targets * vocabulary * each if each < FP32 else 0
        if not backward:
            taken = row.tokens // (self.parallel.tensor if self.parallel.sequence_parallel else 1)
            taken += 0 if "language" in self.trainable else row.targets
            return taken * language.hidden_size * each + logits
        gradients = row.targets * language.hidden_size * each
        if "language" in self.trainable:
            gradients += vocabulary * language.hidden_size * each
        probabilities = row.targets * vocabulary * FP32 if logits else 0
        return max(logits, gradients + logits - probabilities)

    def _layer_work(self, row: RowSizes, backward: bool) -> int:
        """Gradients between the feed-forward part's operations; what the layer saves, where it is computed again."""
        language, each = self.model.language, self.kernels.bytes_each
        ffn = language.ffn_size // self.parallel.tensor
        work = row.tokens * (2 * language.hidden_size + 2 * ffn) * each
        if backward and self.parallel.recompute.language == "full":
            plain = replace(self.parallel, recompute=RecomputeConfig())
            work += decoder_layer_bytes(language, row, plain, self.kernels, "language" in self.trainable)
        return work

    def _tower_work(self, row: RowSizes, backward: bool) -> int:
        """The same of a block of the vision tower, whose patches are many; a frozen one only goes forward."""
        vision, each = self.model.vision, self.kernels.bytes_each
        if not (self.is_first and vision and row.patches):
            return 0
        work = row.patches * (2 * vision.embed_dim + 2 * vision.ffn_size // self.parallel.tensor) * each
        if backward and self.parallel.recompute.vision == "full":
            plain = replace(self.parallel, recompute=RecomputeConfig())
            one = replace(vision, depth=1)
            work += tower_bytes(one, row, plain, self.kernels)
        return work

    def flops(self, row: RowSizes, backward: bool) -> float:
        """Of a pass on this rank; of backward with what is computed again."""
        work = row.work
        if not self.is_first:  # what comes from another pipeline stage goes back there, picture or not
            work = replace(work, blind_tokens=0, blind_pairs=0, blind_targets=0)
        ahead = self._flops_of(part_flops(self.model, (), work))
        if not backward:
            return ahead
        both = part_flops(self.model, self.trainable, work, self.parallel.recompute)
        return self._flops_of(both) - ahead

    def _flops_of(self, parts: dict[str, int]) -> float:
        total = parts["layers"] * self.layers / self.model.language.num_layers
        total += parts.get("vision", 0) if self.is_first else 0
        total += parts["head"] if self.is_last else 0
        merger = parts.get("merger", 0) if self.is_first else 0  # every tensor rank has all of it
        return total / self.parallel.tensor + merger

    def tensor_messages(self, row: RowSizes, backward: bool, overlapped: bool = True) -> Messages:
        """What this rank sends to its tensor group in a pass, with or without what travels beside matrices."""
        if self.parallel.tensor == 1 or (backward and not self.saved(row)):
            return Messages()
        kernels = self.kernels if overlapped else replace(self.kernels, overlap=False)
        axis = TensorAxis(model=self.model, parallel=self.parallel, kernels=kernels, trainable=self.trainable)
        said = axis.layers(self.layers, row, backward)
        said += axis.input(row, backward) if self.is_first else Messages()
        return said + axis.head(row, backward) if self.is_last else said

    def block_passes(self, row: RowSizes, backward: bool) -> int:
        """Layers of decoder and vision tower that a pass goes through; backward with those that it does again."""
        vision, again = self.model.vision, self.parallel.recompute
        if backward and not self.saved(row):
            return 0
        number = self.layers * (2 if backward and again.language == "full" else 1)
        if not (self.is_first and vision and row.patches) or (backward and "vision" not in self.trainable):
            return number
        return number + vision.depth * (2 if backward and again.vision == "full" else 1)

    def message_bytes(self, row: RowSizes) -> float:
        """Hidden states that this rank hands on to the next piece, or their gradient: split over the tensor axis where
        sequences are, whole from each tensor rank where not."""
        ranks = self.parallel.tensor if self.parallel.sequence_parallel else 1
        return row.tokens * self.model.language.hidden_size * self.kernels.bytes_each / ranks
