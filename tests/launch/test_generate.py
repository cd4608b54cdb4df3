"""Batched greedy generation against transformers called plainly, one prompt after the other."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from data.config import IGNORE, ImageConfig
from data.encoding.positions import mrope_positions
from data.types import EncodedSample
from launch.answering.generate import collate, generate, mean_loss, sampled
from launch.answering.questions import Prompt

PAD, VISION_START, IMAGE, VIDEO, TEXT_IDS = 0, 1, 2, 3, 40
PATCH_DIM = ImageConfig().patch_dim
STD = 0.4


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 48,
            "vocab_size": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # large: answers differ from prompt to prompt
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, STD)
    yield model
    torch.set_num_threads(threads)


def prompt(rng: np.random.Generator, parts: list[tuple[str, tuple[int, int, int]] | int]) -> Prompt:
    """A prompt of `int` text tokens and (kind, (t, h, w)) grids in patches."""
    tokens: list[int] = []
    spans, grids, kinds = [], [], []
    for part in parts:
        if isinstance(part, int):
            tokens += rng.integers(4, TEXT_IDS, part).tolist()
            continue
        kind, (time, height, width) = part
        spans.append((len(tokens), (time, height // 2, width // 2)))
        tokens += [IMAGE if kind == "image" else VIDEO] * (time * height * width // 4)
        grids.append((time, height, width))
        kinds.append(kind)
    grid = np.array(grids, dtype=np.int64).reshape(-1, 3)
    visual = np.flatnonzero(np.isin(tokens, (IMAGE, VIDEO)))
    targets = np.full(len(tokens), IGNORE, dtype=np.int64)
    targets[-4:-1] = tokens[-3:]
    encoded = EncodedSample(
        tokens=np.array(tokens, dtype=np.int64),
        targets=targets,
        positions=mrope_positions(len(tokens), spans),
        grids=grid,
        visual_index=visual,
        media=tuple(range(len(grids))),
    )
    patches = rng.standard_normal((int(grid.prod(axis=1).sum()), PATCH_DIM), dtype=np.float32)
    return Prompt(encoded=encoded, kinds=tuple(kinds), patches=patches)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    rng = np.random.default_rng(3)
    return [
        prompt(rng, [5]),
        prompt(rng, [2, ("image", (1, 2, 4)), 6]),
        prompt(rng, [1, ("video", (6, 2, 2)), 4]),  # more time steps than it is wide: transformers' own ids differ
        prompt(rng, [("image", (1, 4, 2)), 3, ("video", (2, 4, 4)), 2, ("image", (1, 2, 2)), 9]),
        prompt(rng, [17]),
    ]


@torch.inference_mode()
def plainly(model: Any, one: Prompt, steps: int) -> list[int]:
    """The whole sequence anew for every token: no cache, no padding, no batch."""
    batch = collate([one], PAD)
    tokens, positions = batch.tokens, batch.positions
    found = []
    for _ in range(steps):
        logits = model(input_ids=tokens, position_ids=positions, **batch.media).logits
        found.append(int(logits[0, -1].argmax()))
        tokens = torch.cat([tokens, torch.tensor([[found[-1]]])], dim=1)
        positions = torch.cat([positions, (positions.max() + 1).expand(3, 1, 1)], dim=2)
    return found


def test_a_batch_answers_what_each_prompt_answers_alone(model: Any, prompts: list[Prompt]) -> None:
    expected = [plainly(model, one, 8) for one in prompts]
    assert len({tuple(answer) for answer in expected}) == len(prompts), "answers too alike to tell prompts apart"
    assert generate(model, prompts, end=(), pad=PAD, most=8) == expected


def test_an_answer_ends_before_its_end_token(model: Any, prompts: list[Prompt]) -> None:
    whole = generate(model, prompts, end=(), pad=PAD, most=8)
    end = whole[3][2]
    cut = generate(model, prompts, end=(end,), pad=PAD, most=8)
    assert cut == [answer[: answer.index(end)] if end in answer else answer for answer in whole]
    assert any(len(answer) < 8 for answer in cut)


def test_the_picture_reaches_the_answer(model: Any, prompts: list[Prompt]) -> None:
    shown = prompts[1]
    other = Prompt(encoded=shown.encoded, kinds=shown.kinds, patches=-shown.patches)
    batch = [collate([one], PAD) for one in (shown, other)]
    with torch.inference_mode():
        logits = [
            model(input_ids=b.tokens, attention_mask=b.mask, position_ids=b.positions, **b.media).logits for b in batch
        ]
    assert not torch.allclose(logits[0][:, -1], logits[1][:, -1], atol=1e-3)


def test_the_loss_of_a_batch_is_that_of_its_tokens(model: Any, prompts: list[Prompt]) -> None:
    alone = []
    for one in prompts:
        batch = collate([one], PAD)
        with torch.inference_mode():
            logits = model(input_ids=batch.tokens, position_ids=batch.positions, **batch.media).logits[0].double()
        wanted = batch.targets[0]
        log_probs = logits.log_softmax(dim=-1)[torch.arange(len(wanted)), wanted.clamp(min=0)]
        alone += (-log_probs[wanted != IGNORE]).tolist()
    assert len(alone) == 3 * len(prompts)
    assert mean_loss(model, prompts, pad=PAD) == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def test_temperature_draws_by_probability() -> None:
    logits = torch.tensor([[0.0, np.log(3.0), -50.0]]).repeat(4000, 1)
    drawn = sampled(1.0, torch.Generator().manual_seed(0))(logits)
    assert (drawn == 1).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert set(sampled(1e-9, torch.Generator().manual_seed(0))(logits).tolist()) == {1}
    assert set(sampled(0.0, torch.Generator())(logits).tolist()) == {1}
