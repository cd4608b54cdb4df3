"""One update of every tensor against AdamW by hand: which rate and which decay reached it."""

from dataclasses import dataclass

import numpy as np

from model.config import ModelConfig
from parallel.config import ParallelConfig
from tests.harness.compare import assemble
from tests.harness.layouts import MODEL, NUM_ROWS, Record, first_weight, train_on_layout
from tests.harness.rows import random_step

# Written out by hand: vision has 2 layers and falls by 0.5 a layer, language 4 and falls by 0.8, the merger not at all.
CHANGES = {
    "learning_rates": {"vision": 1e-2, "merger": 2e-2, "language": 4e-2},
    "weight_decays": {"vision": 0.5, "language": 0.2},
    "layer_decays": {"vision": 0.5, "language": 0.8},
}
RATES = {
    "vision.patch_embed.": 0.25e-2,
    "vision.blocks.layers.0.": 0.5e-2,
    "vision.blocks.layers.1.": 1e-2,
    "merger.": 2e-2,
    "language.embedding.": 4e-2 * 0.4096,
    "language.decoder.layers.0.": 4e-2 * 0.512,
    "language.decoder.layers.1.": 4e-2 * 0.64,
    "language.decoder.layers.2.": 4e-2 * 0.8,
    "language.decoder.layers.3.": 4e-2,
    "language.decoder.final_layernorm.": 4e-2,
    "language.output_layer.": 4e-2,
}
DECAYS = {"vision": 0.5, "merger": 0.05, "language": 0.2}
"""The merger's is OptimizerConfig's own."""
MATRICES = (
    *("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "fc1", "fc2"),
    *("patch_embed", "word_embeddings", "output_layer"),
)
CLIP_NORM, EPS = 0.5, 1e-6
"""Of tests.harness.layouts."""


@dataclass(frozen=True, kw_only=True)
class Updates:
    """Names of tensors that one step moved otherwise than it should."""

    wrong: list[str]
    decayed_vectors: list[str]
    """Norms and biases whose update is nearer to one with their part's decay than to one without."""
    moved_frozen: list[str]
    looked_at: int


def one_step(parallel: ParallelConfig, stage: str, model: ModelConfig = MODEL) -> Record:
    """One step of CHANGES on this rank; run it on every rank."""
    steps = [random_step(100, NUM_ROWS, model.language.vocab_size)]
    return train_on_layout(parallel, stage, model=model, steps=steps, changes=CHANGES)


def check_updates(records: list[Record]) -> Updates:
    """Every tensor of every rank after `one_step`, against w - r (d w + g / (|g| + eps)), g clipped."""
    gradients = assemble([record.gradients[0] for record in records])
    clip = min(1.0, CLIP_NORM / (records[0].norms[0] + 1e-6))
    wrong, decayed_vectors, moved = set(), set(), set()
    for piece in (piece for record in records for piece in record.weights):
        box = tuple(slice(at, at + size) for at, size in zip(piece.offset, piece.values.shape, strict=True))
        before = first_weight(piece.name, piece.shape)[box].double().numpy()
        if piece.name not in gradients:
            if not np.array_equal(piece.values, first_weight(piece.name, piece.shape)[box].numpy()):
                moved.add(piece.name)
            continue
        update = before - piece.values
        gradient = gradients[piece.name][box].astype(np.float64) * clip
        (rate,) = (rate for prefix, rate in RATES.items() if piece.name.startswith(prefix))
        plain = rate * gradient / (np.abs(gradient) + EPS)
        decayed = plain + rate * DECAYS[piece.name.split(".")[0]] * before
        is_matrix = piece.name.split(".")[-2] in MATRICES and piece.name.endswith(".weight")
        due = decayed if is_matrix else plain
        if _distance(update, due) > 1e-4 * np.linalg.norm(due):
            wrong.add(piece.name)
        if not is_matrix and _distance(update, decayed) < _distance(update, plain):
            decayed_vectors.add(piece.name)
    names = {piece.name for record in records for piece in record.weights}
    return Updates(
        wrong=sorted(wrong),
        decayed_vectors=sorted(decayed_vectors),
        moved_frozen=sorted(moved),
        looked_at=len(names),
    )


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other))
