"""Conversations, grounding, agents, every kind of data, and the page that shows them (item 9)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.samples.kinds import KINDS
from tests.data.golden_kinds import golden_tokenizer
from tests.prove.case import Case, Cell
from tests.prove.context import Context
from tests.prove.data_chat_measures import (
    box_faults,
    control_faults,
    kind_faults,
    page_faults,
    random_faults,
)

SAMPLES = 5  # of each kind
OF_A_KIND = {
    "ids": "samples with other ids than the chat template gives",
    "learnt": "samples with other tokens learnt than are the assistant's",
    "golden": "runs of tokens that differ from those written down",
}
RANDOM_ROWS = {
    "ids": "random conversations with other ids than the chat template gives",
    "learnt": "random conversations with other tokens learnt",
    "prompts": "random conversations whose prompt is not the chat template's",
    "targets": "random conversations with a target that is not the next token",
}
PUBLISHED_ROWS = {
    "ids": "random conversations with other ids than by the template that Qwen2-VL was published with",
    "learnt": "random conversations with other tokens learnt than by that template",
    "prompts": "random conversations whose prompt is not that template's",
}
BOX_ROWS = {
    "lost": "random boxes that are not found again in their text",
    "far": "sides of random boxes that come back farther off than is said",
    "template": "random boxes that the chat template writes otherwise",
    "unstable": "random boxes in thousandths that change when they are written again",
}
PAGE_ROWS = {
    "unopened": "pages of samples opened by a browser: not once",
    "alive": "tags and attributes on a page of hostile samples that are not the page's own",
    "unseen": "hostile strings that are not there as text",
    "pictures": "pictures on a page that are not those of the row",
    "screen": "pictures that a browser's screenshot of the page does not show, pixel for pixel",
    "boxes": "boxes drawn elsewhere than they were measured",
    "learnt": "pages whose marked text is not what is learnt",
}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {f"chat/{kind}": _kind(kind) for kind in KINDS}
    found["chat/random"] = _counted(RANDOM_ROWS, random_faults)
    found["chat/published"] = _counted(PUBLISHED_ROWS, random_faults, published=True)
    found["chat/control tokens"] = _counted({"control": "control tokens that text brought into a row"}, control_faults)
    found["chat/boxes"] = _counted(BOX_ROWS, box_faults)
    found["chat/page"] = _counted(PAGE_ROWS, page_faults)
    return found


def _kind(kind: str) -> Case:
    rows = {fault: f"{kind}: {text}" for fault, text in OF_A_KIND.items()}
    return _counted(rows, kind_faults, kind=kind, samples=SAMPLES)


def _counted(rows: dict[str, str], task: Callable[..., dict[str, Any]], **arguments: Any) -> Case:
    def run(context: Context) -> list[Cell]:
        (found,) = context.run(1, task, folder=_tokenizer(context), **arguments)
        tried = found.get("tried")
        unit = found.get("by") or (f"of {tried}" if tried else "count")
        return [Cell(name=name, measured=found[fault], limit=0, unit=unit) for fault, name in rows.items()]

    return Case(item=9, names=tuple(rows.values()), run=run)


def _tokenizer(context: Context) -> Path:
    folder = context.scratch / "chat tokenizer"
    if not folder.exists():
        golden_tokenizer(folder)
    return folder
