"""Generation and loss with a transformers Qwen2-VL or Qwen2, handed our pixels and our position ids at every step.

transformers computes other positions where a clip has more time steps than rows and columns, and its picture
processor needs torchvision: so neither is used. B prompts, T tokens of the longest, padded on the left; V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.config import IGNORE
from launch.answering.questions import Prompt

PADDED_TOKENS = 16384  # of a batch: bounds memory, and longer prompts make smaller batches
Choose = Callable[[Tensor], Tensor]  # logits (B, V) to the ids (B,) that go on


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Model inputs of several prompts."""

    tokens: Tensor  # int64 (B, T)
    mask: Tensor  # int64 (B, T) 1 where there is a token
    positions: Tensor  # int64 (3, B, T) M-RoPE ids; 1 in the padding
    targets: Tensor  # int64 (B, T)
    media: dict[str, Tensor]  # pixels and grids by the names that transformers gives them


def likeliest(logits: Tensor) -> Tensor:
    """Greedy choice."""
    return logits.argmax(dim=-1)


def sampled(temperature: float, generator: torch.Generator) -> Choose:
    """Draw by the probabilities at `temperature`; 0 is the greedy choice, which is also the limit towards 0."""
    if temperature == 0:
        return likeliest

    def choose(logits: Tensor) -> Tensor:
        wide = logits.float()
        # Less than nothing over a small temperature is minus infinity, a probability of 0; above it would be NaN.
        shares = ((wide - wide.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
        return torch.multinomial(shares, 1, generator=generator)[:, 0]

    return choose


def generate(
    model: Any, prompts: Sequence[Prompt], *, end: Sequence[int], pad: int, most: int, device: str = "cpu"
) -> list[list[int]]:
    """Token ids of each prompt's greedy answer, in the order given, without the token of `end` that stopped it.

    Args:
        model: Qwen2VLForConditionalGeneration in eval mode, or Qwen2ForCausalLM for prompts without pictures.
        end: ids that end an answer.
        pad: any id that is not a picture's or clip's.
        most: tokens after which an answer is cut.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for places in _batches(prompts):
        batch = collate([prompts[place] for place in places], pad, device)
        for column in stream(model, batch, end=end, most=most):
            for place, token in zip(places, column, strict=True):
                if token is not None:
                    answers[place].append(token)
    return answers


@torch.inference_mode()
def stream(
    model: Any, batch: Batch, *, end: Sequence[int], most: int, choose: Choose = likeliest
) -> Iterator[list[int | None]]:
    """The next id of every prompt, step by step, until all have ended or `most` steps are over.

    None stands where an answer has ended; the ids of `end` are not given out. Arguments as for `generate`.
    """
    ends = torch.tensor(list(end), device=batch.tokens.device)
    # Every axis goes on from the largest id of all three.
    position = batch.positions.masked_fill(batch.mask[None] == 0, 0).amax(dim=(0, 2)) + 1
    fed = {"input_ids": batch.tokens, "position_ids": _for(model, batch.positions), **batch.media}
    mask, cache = batch.mask, None
    running = torch.ones(len(batch.tokens), dtype=torch.bool, device=batch.tokens.device)
    for _ in range(most):
        out = model(attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, **fed)
        chosen = choose(out.logits[:, -1])
        running = running & ~torch.isin(chosen, ends)
        column = torch.where(running, chosen, -1).tolist()
        if not any(token >= 0 for token in column):
            return
        yield [token if token >= 0 else None for token in column]
        cache = out.past_key_values
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        fed = {"input_ids": chosen[:, None], "position_ids": _for(model, position.expand(3, -1)[..., None])}
        position = position + 1


def _for(model: Any, positions: Tensor) -> Tensor:
    """(3, B, T) ids as `model` takes them: a plain Qwen2 has one axis, and on text all three are equal."""
    return positions[0] if model.config.model_type == "qwen2" else positions


@torch.inference_mode()
def mean_loss(model: Any, prompts: Sequence[Prompt], *, pad: int, device: str = "cpu") -> float:
    """Cross entropy in nats, mean over all supervised tokens of all prompts."""
    total, count = 0.0, 0
    for places in _batches(prompts):
        batch = collate([prompts[place] for place in places], pad, device)
        logits = model(
            input_ids=batch.tokens, attention_mask=batch.mask, position_ids=_for(model, batch.positions), **batch.media
        ).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        total += losses.item()
        count += int((batch.targets != IGNORE).sum())
    return total / count


def collate(prompts: Sequence[Prompt], pad: int, device: str = "cpu") -> Batch:
    """Pad on the left, so that the last column of every prompt is the one that is continued."""
    longest = max(len(prompt.encoded.tokens) for prompt in prompts)
    tokens = np.full((len(prompts), longest), pad, dtype=np.int64)
    mask = np.zeros_like(tokens)
    positions = np.ones((3, *tokens.shape), dtype=np.int64)
    targets = np.full_like(tokens, IGNORE)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.encoded.tokens)
        tokens[row, start:] = prompt.encoded.tokens
        mask[row, start:] = 1
        positions[:, row, start:] = prompt.encoded.positions
        targets[row, start:] = prompt.encoded.targets
    integers = [torch.from_numpy(array).to(device) for array in (tokens, mask, positions, targets)]
    return Batch(
        tokens=integers[0], mask=integers[1], positions=integers[2], targets=integers[3], media=_media(prompts, device)
    )


def _media(prompts: Sequence[Prompt], device: str) -> dict[str, Tensor]:
    pixels: dict[str, list[np.ndarray]] = {"image": [], "video": []}
    grids: dict[str, list[np.ndarray]] = {"image": [], "video": []}
    for prompt in prompts:
        ends = np.cumsum(prompt.encoded.grids.prod(axis=1))
        pieces = np.split(prompt.patches, ends[:-1]) if len(ends) else []
        for kind, grid, piece in zip(prompt.kinds, prompt.encoded.grids, pieces, strict=True):
            pixels[kind].append(piece)
            grids[kind].append(grid)
    media = {}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            media[name] = torch.from_numpy(np.concatenate(pixels[kind])).to(device)
            media[f"{kind}_grid_thw"] = torch.from_numpy(np.stack(grids[kind])).to(device)
    return media


def _batches(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Places of prompts of similar length."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].encoded.tokens))
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * len(prompts[place].encoded.tokens) > PADDED_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
