"""Which sources there are and how many samples each holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from data.samples.items import Item, as_chat, as_document
from data.samples.splits import Split, rng_for
from data.samples.tasks import TASKS
from data.samples.text import plain_text, text_chat
from data.samples.write import Sample

NUM_HELDOUT = 120  # a task


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A folder of shards. task: the task its samples belong to, or "" for text."""

    draw: Callable[..., Item]
    task: str
    chat: bool
    samples: int


def _visual(task: str, documents: int, chats: int) -> dict[str, Source]:
    draw = TASKS[task].draw
    return {
        task: Source(draw=draw, task=task, chat=False, samples=documents),
        f"chat_{task}": Source(draw=draw, task=task, chat=True, samples=chats),
    }


TRAIN_SOURCES: dict[str, Source] = {
    "text": Source(draw=plain_text, task="", chat=False, samples=4000),
    "chat_text": Source(draw=text_chat, task="", chat=True, samples=2000),
    **_visual("captions", 3000, 500),
    **_visual("reading", 2500, 800),
    **_visual("digits", 1000, 600),
    **_visual("multi", 900, 600),
    **_visual("interleaved", 700, 400),
    **_visual("grounding", 1500, 700),
    **_visual("clips", 900, 400),
}


def train_samples(source: str, seed: int, fraction: float) -> Iterator[Sample]:
    """The first `fraction` of the training samples of one source."""
    what = TRAIN_SOURCES[source]
    make = as_chat if what.chat else as_document
    for index in range(round(what.samples * fraction)):
        item = what.draw(rng_for(seed, source, "train", index), "train", chat=what.chat)
        yield make(item, source), item.media


def heldout_samples(task: str, seed: int) -> Iterator[Sample]:
    """Held-out conversations of one task, each with its last answer to score."""
    split: Split = "heldout"
    for index in range(NUM_HELDOUT):
        item = TASKS[task].draw(rng_for(seed, task, split, index), split, chat=True)
        content = as_chat(item, task)
        yield content | {"eval": _score(task, item)}, item.media


def heldout_documents(source: str, seed: int) -> Iterator[Sample]:
    """Held-out pretraining documents, for losses: captions with the right and with a shuffled picture, and text."""
    what = TRAIN_SOURCES[source]
    for index in range(NUM_HELDOUT):
        item = what.draw(rng_for(seed, f"document/{source}", "heldout", index), "heldout", chat=False)
        content = as_document(item, source)
        yield (content | {"eval": _score(what.task, item)} if what.task else content), item.media


def _score(task: str, item: Item) -> dict[str, Any]:
    return {"task": task, "answer": item.turns[-1][1], "metric": TASKS[task].metric}
