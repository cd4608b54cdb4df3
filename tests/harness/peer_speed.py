"""Our step against the plain way: transformers' Qwen2-VL and torch's AdamW, the same weights and samples, one process.

The plain way is what a user writes first: samples collated into batches that are padded to their longest, sdpa
attention, the loss that the model returns, gradients clipped by norm, AdamW. Its batches are made beforehand; ours are
announced in the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.config import IGNORE
from data.encoding.positions import mrope_positions
from data.types import PackedRow
from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.hf_config import hf_config
from model.hf_weights import canonical_shape, hf_pieces, published_name, to_hf
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import OPTIMIZER, first_weight, stage_config
from tests.harness.parity import IDS
from tests.harness.rows import PATCH_DIM, pack
from tests.harness.timing import Repeated, Timing, in_turn

Sample = dict[str, np.ndarray]
MODEL = ModelConfig(
    name="peer speed",
    vision=VisionConfig(depth=4, embed_dim=256, num_heads=4),
    language=LanguageConfig(
        hidden_size=256,
        num_layers=6,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=1024,
        vocab_size=4096,
        mrope_section=(8, 12, 12),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Race:
    """The plain way (first) and ours (second) over the same steps."""

    timing: Timing
    loss: float
    """Largest relative difference of a step's loss."""
    padding: float
    """Share of the plain way's places that only fill up."""


def race(lengths: str, batch: int, rows: int, pairs: int, threads: int = 1, samples: int | None = None) -> Race:
    """Time both in a joined world of one process.

    Args:
        lengths: "equal", 8 samples of 192 tokens with a picture, or "mixed", 24 samples of about 20 to 600.
        batch: samples in a batch of the plain way.
        rows: microbatches into which we pack the same samples.
        samples: only so many of them.
    """
    chosen = (equal_lengths() if lengths == "equal" else mixed_lengths())[:samples]
    batches = [collate(chosen[at : at + batch]) for at in range(0, len(chosen), batch)]
    plain, alone = PlainWay(batches), ParallelConfig()
    torch.set_num_threads(threads)
    try:
        with model_parallel(alone, pick_device(), seed=0) as groups:
            ours = Repeated(MODEL, alone, "stage2", groups, packed(chosen, rows), pairs + 2)
            timing = in_turn(plain.step, ours.step, pairs)
            ours.made.optimizer.close()
    finally:
        torch.set_num_threads(1)
    losses = [loss for loss, _ in ours.numbers]
    real = sum(len(sample["tokens"]) for sample in chosen)
    return Race(
        timing=timing,
        loss=max(abs(one - other) / other for one, other in zip(losses, plain.losses, strict=True)),
        padding=1 - real / sum(batch["input_ids"].numel() for batch in batches),
    )


class PlainWay:
    """A user's own loop around the model of transformers, with the weights that `start` fills in."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.losses: list[float] = []
        """Of each step, over the supervised tokens of all its batches."""
        self._batches = batches
        self._supervised = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
        self._model = _transformers_model()
        named = list(self._model.named_parameters())
        self._adamw = torch.optim.AdamW(
            [
                {"params": [p for _, p in named if p.ndim > 1], "weight_decay": OPTIMIZER.weight_decay},
                {"params": [p for _, p in named if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=stage_config("stage2").learning_rates["language"],
            betas=OPTIMIZER.betas,
            eps=OPTIMIZER.eps,
        )

    def step(self) -> None:
        """One optimizer step."""
        total = 0.0
        for batch in self._batches:
            loss = self._model(**batch, use_cache=False, num_items_in_batch=self._supervised).loss
            loss.backward()
            total += float(loss)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), OPTIMIZER.clip_norm)
        self._adamw.step()
        self._adamw.zero_grad()
        self.losses.append(total)


def _transformers_model() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    made = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(hf_config(MODEL, IDS, torch.float32)))
    published = {
        name: tensor
        for canonical, pieces in hf_pieces(MODEL).items()
        for name, tensor in to_hf(pieces, first_weight(canonical, canonical_shape(pieces), 0.02)).items()
    }
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(published[published_name(name)])
    return made.train()


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """A batch of the plain way: (B, T) padded on the right to the longest, labels unshifted, positions ours."""
    shape = len(samples), max(len(sample["tokens"]) for sample in samples)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORE),
        "position_ids": torch.zeros((3, *shape), dtype=torch.int64),
    }
    for number, sample in enumerate(samples):
        length = len(sample["tokens"])
        tokens = sample["tokens"].copy()
        tokens[sample["visual_index"]] = IDS["image"]
        batch["input_ids"][number, :length] = torch.from_numpy(tokens)
        batch["attention_mask"][number, :length] = 1
        batch["labels"][number, 1:length] = torch.from_numpy(sample["targets"][:-1])
        batch["position_ids"][:, number, :length] = torch.from_numpy(sample["positions"])
    grids = np.concatenate([sample["grids"] for sample in samples])
    if len(grids):
        batch["pixel_values"] = torch.from_numpy(np.concatenate([sample["patches"] for sample in samples]))
        batch["image_grid_thw"] = torch.from_numpy(grids)
    return batch


def packed(samples: Sequence[Sample], rows: int) -> list[PackedRow]:
    """Rows of about equal length: the longest sample first, each goes to the row that is shortest so far."""
    dealt: list[list[Sample]] = [[] for _ in range(rows)]
    for sample in sorted(samples, key=lambda sample: -len(sample["tokens"])):
        min(dealt, key=lambda row: sum(len(other["tokens"]) for other in row)).append(sample)
    return [pack(row) for row in dealt]


def equal_lengths() -> list[Sample]:
    """192 tokens each: a picture of 16 x 16 patches, and text."""
    generator = np.random.default_rng(0)
    return [_sample(generator, 128, (1, 16, 16)) for _ in range(8)]


def mixed_lengths() -> list[Sample]:
    """Text of 16 to 600 tokens, log-normal as in instruction data; three samples in four have a picture."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(24):
        text = int(np.clip(np.exp(generator.normal(4.2, 1.0)), 16, 600))
        height, width = (2 * int(side) for side in generator.integers(2, 9, 2))
        found.append(_sample(generator, text, (1, height, width) if number % 4 else None))
    return found


def _sample(generator: np.random.Generator, text: int, grid: tuple[int, int, int] | None) -> Sample:
    """A picture, if any, and so much text, of which the first quarter is a question and not to be learnt."""
    visual = grid[1] * grid[2] // 4 if grid else 0
    length, learnt = visual + text, visual + text // 4
    tokens = generator.integers(8, MODEL.language.vocab_size, length)
    targets = np.full(length, IGNORE)
    targets[learnt - 1 : -1] = tokens[learnt:]
    spans = [(0, (1, grid[1] // 2, grid[2] // 2))] if grid else []
    return {
        "tokens": tokens,
        "targets": targets,
        "positions": mrope_positions(length, spans),
        "grids": np.array([grid] if grid else [], dtype=np.int64).reshape(-1, 3),
        "visual_index": np.arange(visual),
        "patches": generator.standard_normal((4 * visual, PATCH_DIM), dtype=np.float32),
    }
