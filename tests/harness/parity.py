"""Our model against transformers' Qwen2-VL: the same random weights, imported through a folder; the same positions."""

import tempfile
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from model.build import BuiltModel, build_model
from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.hf_config import hf_config
from model.hf_weights import canonical_shape, from_hf, hf_pieces, published_name, to_hf
from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.schedule import Schedule
from parallel.world import model_parallel, pick_device
from tests.harness.filling import fill_from
from tests.harness.layouts import MODEL, NUM_ROWS, STAGES, Record, first_weight, train_on_layout
from tests.harness.rows import GRIDS, PATCH_DIM, pack, random_sample, random_step, random_step_samples
from train.batches import RowForm, announce

IDS = {
    "bos": 0,
    "eos": 1,
    "pad": 0,
    "vision_start": 2,
    "vision_end": 3,
    "vision_pad": 4,
    "image": 5,
    "video": 6,
}
"""Below 8, where random text starts."""
CASES: dict[str, list[list[tuple[int, int, int]]]] = {
    "one picture": [[GRIDS[0]]],
    "several pictures": [[GRIDS[0], GRIDS[3], GRIDS[1]]],
    "a clip": [[GRIDS[4]]],
    "picture and clip": [[GRIDS[1], GRIDS[2]]],
    "text alone": [[]],
    "a packed row of all": [[GRIDS[0]], [GRIDS[0], GRIDS[3], GRIDS[1]], [GRIDS[4]], [], [GRIDS[1], GRIDS[2]]],
}

WIDE = ModelConfig(
    name="2B's width",
    vision=VisionConfig(depth=2, embed_dim=1280, num_heads=16),
    language=LanguageConfig(
        hidden_size=1536,
        num_layers=2,
        num_heads=12,
        num_kv_heads=2,
        ffn_size=8960,
        vocab_size=151_936,
        mrope_section=(16, 24, 24),
        tie_embeddings=True,
    ),
)
"""The 2B with two layers of each tower: 402 M parameters."""


@dataclass(kw_only=True)
class ParityError:
    """Relative differences to transformers."""

    loss: float
    logits: float
    gradient: float
    worst: str

    @property
    def largest(self) -> float:
        return max(self.loss, self.logits, self.gradient)


def measure_parity(tied: bool, cases: list[str] | None = None, sizes: ModelConfig = MODEL) -> dict[str, ParityError]:
    """Every case in fp32, in a joined world of one process. Error of a gradient: by norm, relative to the larger of its
    own norm and 1e-6 of the whole gradient's."""
    model = replace(sizes, language=replace(sizes.language, tie_embeddings=tied))
    reference = random_transformers_model(model)
    with tempfile.TemporaryDirectory() as folder, model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        reference.save_pretrained(folder)
        built = build_model(model, ParallelConfig(), groups, torch.float32, STAGES["stage2"])
        fill_from(built, folder)
        return {case: _case(reference, built, groups, CASES[case], seed) for seed, case in enumerate(cases or CASES)}


def random_transformers_model(model: ModelConfig, seed: int = 1, std: float = 0.02) -> Any:
    """transformers starts norms at 1 and biases at 0, which would hide swapped ones: here everything is random."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()  # of saving, which prints into the proof's table
    config = Qwen2VLConfig.from_dict(hf_config(model, IDS, torch.float32))
    reference = Qwen2VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(0.0, std, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.mul_(0.1 / std).add_(1.0)
    return reference


def measure_step(parallel: ParallelConfig, tied: bool) -> list[Record]:
    """This rank's record of one whole step of uneven rows through `train_step`; compare it with `expected_step`."""
    steps = [random_step(100, NUM_ROWS, MODEL.language.vocab_size)]
    model = replace(MODEL, language=replace(MODEL.language, tie_embeddings=tied))
    return [train_on_layout(parallel, "stage2", model=model, steps=steps, std=0.02)]


def expected_step(tied: bool) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradient of the same step in transformers, row by row, over the supervised tokens of all rows."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    model = replace(MODEL, language=replace(MODEL.language, tie_embeddings=tied))
    reference = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(hf_config(model, IDS, torch.float32))).eval()
    published = {
        name: tensor
        for canonical, pieces in hf_pieces(model).items()
        for name, tensor in to_hf(pieces, first_weight(canonical, canonical_shape(pieces), 0.02)).items()
    }
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.copy_(published[published_name(name)])
    samples = random_step_samples(100, NUM_ROWS, model.language.vocab_size)
    loss, _, gradients = run_transformers(reference, model, [sample for row in samples for sample in row])
    return loss, {name: gradient.numpy() for name, gradient in gradients.items()}


def _case(reference: Any, built: BuiltModel, groups: Groups, grids: list[Any], seed: int) -> ParityError:
    generator = np.random.default_rng(seed)
    samples = [random_sample(generator, built.config.language.vocab_size, sample) for sample in grids]
    expected_loss, expected_logits, expected = run_transformers(reference, built.config, samples)
    announced = announce([pack(samples)], 1, groups, RowForm(dtype=torch.float32, patch_dim=PATCH_DIM, multiple=1))
    with torch.no_grad():
        logits = built.module.chunks[0](announced.rows[0], with_loss=False)[0]
    built.module.zero_grad(set_to_none=True)
    sums = Schedule(built.module.chunks, groups).run(announced.rows, announced.lengths, _mean_loss)
    loss = float(sums[0])
    measured = {
        built.boxes[name].name: torch.zeros(built.boxes[name].shape)
        if p.grad is None
        else built.boxes[name].view(p.grad)
        for name, p in built.module.named_parameters()
    }
    assert measured.keys() == expected.keys()
    total = sum(float(g.square().sum()) for g in expected.values()) ** 0.5
    errors = {
        name: float((measured[name] - gradient).norm()) / max(float(gradient.norm()), 1e-6 * total)
        for name, gradient in expected.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    return ParityError(
        loss=abs(loss - expected_loss) / abs(expected_loss),
        logits=float((logits - expected_logits).norm() / expected_logits.norm()),
        gradient=errors[worst],
        worst=worst,
    )


def _mean_loss(row: Any, token_losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    supervised = row.targets >= 0
    loss = (token_losses * supervised).sum() / supervised.sum()
    return loss, loss.detach()


def run_transformers(reference: Any, config: ModelConfig, samples: list[Any]) -> tuple[float, Any, dict[str, Any]]:
    """Sample by sample: loss over all supervised tokens, joined logits, gradients under canonical names."""
    reference.zero_grad(set_to_none=True)
    num_targets = sum(int((sample["targets"] >= 0).sum()) for sample in samples)
    total, logits = 0.0, []
    # Summed in fp32 also for a bf16 model, as our trainer does: in `.grad` every sample would be rounded once more.
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in reference.named_parameters()}
    for sample in samples:
        out = reference(**_transformers_inputs(sample)).logits[0]
        targets = torch.from_numpy(sample["targets"])
        loss = F.cross_entropy(out, targets, ignore_index=-100, reduction="sum") / num_targets
        loss.backward()
        total += float(loss)
        logits.append(out.detach())
        for name, p in reference.named_parameters():
            if p.grad is not None:
                sums[name] += p.grad
        reference.zero_grad(set_to_none=True)
    gradients = {published_name(name): gradient for name, gradient in sums.items()}
    canonical = {name: from_hf(pieces, gradients) for name, pieces in hf_pieces(config).items()}
    return total, torch.cat(logits), canonical


def _transformers_inputs(sample: Any) -> dict[str, torch.Tensor]:
    """Stills as images, clips as videos, positions ours."""
    tokens = sample["tokens"].copy()
    starts = np.cumsum([0] + [int(np.prod(grid)) for grid in sample["grids"]])
    pixels: dict[str, list[np.ndarray]] = {"image": [], "video": []}
    grids: dict[str, list[np.ndarray]] = {"image": [], "video": []}
    for grid, start, end in zip(sample["grids"], starts, starts[1:], strict=False):
        kind = "image" if grid[0] == 1 else "video"
        tokens[sample["visual_index"][start // 4 : end // 4]] = IDS[kind]
        pixels[kind].append(sample["patches"][start:end])
        grids[kind].append(grid)
    inputs = {
        "input_ids": torch.from_numpy(tokens)[None],
        "position_ids": torch.from_numpy(sample["positions"])[:, None],
    }
    for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels[kind]:
            inputs[key] = torch.from_numpy(np.concatenate(pixels[kind]))
            inputs[f"{kind}_grid_thw"] = torch.from_numpy(np.stack(grids[kind]))
    return inputs
