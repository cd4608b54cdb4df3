"""What the rows of tests/prove/data_chat.py count. Each task runs in a worker, on a tokenizer folder it is told."""

import json
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

from data.config import IGNORE
from data.encoding.encode import encode_prompt, encode_sample, media_grid, visual_parts
from data.encoding.grounding import box_text, find_boxes, part_text, unscaled
from data.encoding.tokenizer import SPECIAL_NAMES, load_tokenizer
from data.samples.kinds import KINDS
from data.types import MediaSize
from data.visual.decode import ClipDecoder
from tests.data.golden_kinds import FILE, IMAGE, VIDEO, measured, readable
from tests.harness.browser import INSTALL, find_browser, is_blank, shows
from tests.harness.chat_judge import ChatJudge, published_template
from tests.harness.chat_strategies import boxes, conversations, shown_conversations
from tests.harness.html_page import HOSTILE, read_page
from tests.harness.pages import Source, plain_source

SIZES = {
    "image": MediaSize(kind="image", height=60, width=90),
    "video": MediaSize(kind="video", height=48, width=64, frames=12, fps=8.0),
}
RANDOM = 400


def kind_faults(folder: Path, kind: str, samples: int) -> dict[str, int]:
    """Of one kind of data: samples with other ids, samples with other tokens learnt, golden rows that differ."""
    tokenizer, judge, decoder = load_tokenizer(folder), ChatJudge(folder), ClipDecoder(60.0)
    wrong = {"ids": 0, "learnt": 0, "golden": 0}
    try:
        for number in range(samples):
            content, sizes = measured(kind, number, decoder)
            encoded = encode_sample(content, sizes, tokenizer, IMAGE, VIDEO)
            lengths = [media_grid(size, IMAGE, VIDEO).num_tokens for size in sizes]
            ids, learnt = (judge.judge if "messages" in content else judge.judge_document)(content, lengths)
            wrong["ids"] += encoded.tokens.tolist() != ids
            wrong["learnt"] += (encoded.targets != IGNORE).tolist() != [*learnt[1:], False]
            if number == 0:
                golden = json.loads(FILE.read_text("utf-8"))[kind]
                found = readable(encoded, tokenizer)
                wrong["golden"] = abs(len(found) - len(golden)) + sum(
                    one != other for one, other in zip(found, golden, strict=False)
                )
    finally:
        decoder.close()
    assert list(json.loads(FILE.read_text("utf-8"))) == list(KINDS)
    return wrong


def random_faults(folder: Path, published: bool = False) -> dict[str, int]:
    """Of RANDOM conversations: other ids, other tokens learnt, other prompts, targets that are not the next token.

    `published`: than by the template of Qwen2-VL-Instruct, of conversations that it knows; else by the folder's own.
    """
    tokenizer, judge = load_tokenizer(folder), ChatJudge(folder, published_template() if published else None)
    wrong = {"ids": 0, "learnt": 0, "prompts": 0, "targets": 0, "tried": 0}

    def one(sample: dict[str, Any]) -> None:
        sizes = [SIZES[kind] for kind, _ in visual_parts(sample)]
        lengths = [media_grid(size, IMAGE, VIDEO).num_tokens for size in sizes]
        ids, learnt = judge.judge(sample, lengths)
        found = encode_sample(sample, sizes, tokenizer, IMAGE, VIDEO)
        mask = found.targets != IGNORE
        wrong["tried"] += 1
        wrong["ids"] += found.tokens.tolist() != ids
        wrong["learnt"] += mask.tolist() != [*learnt[1:], False]
        wrong["targets"] += bool((found.targets[:-1][mask[:-1]] != found.tokens[1:][mask[:-1]]).any())
        said = [place for place, message in enumerate(sample["messages"]) if message["role"] == "assistant"]
        if said and said[-1]:
            prompt = encode_prompt(sample, sizes, tokenizer, IMAGE, VIDEO)
            before = {**sample, "messages": sample["messages"][: said[-1]]}
            due, _ = judge.judge(before, lengths[: len(prompt.media)], add_generation_prompt=True)
            wrong["prompts"] += prompt.tokens.tolist() != due

    _each(shown_conversations() if published else conversations(), one)
    return wrong


def control_faults(folder: Path) -> dict[str, int]:
    """Control tokens that text of every field brought into a row; grounding tokens are meant to come."""
    tokenizer = load_tokenizer(folder)
    meant = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")
    control = [getattr(tokenizer.ids, name) for name in SPECIAL_NAMES if name not in meant]

    def count(text: str) -> int:
        function = {"name": "tap", "description": text, "parameters": {text: text}}
        call = {"function": {"name": "tap", "arguments": {text: text}}}
        messages = [
            {"role": "system", "content": text},
            {"role": "user", "content": [{"type": "text", "text": text}, {"type": "ref", "text": text}]},
            {"role": "assistant", "content": text, "tool_calls": [call]},
            {"role": "tool", "content": text},
            {"role": "assistant", "content": text},
        ]
        rows = [{"tools": [{"function": function}], "messages": messages}, {"parts": [{"type": "text", "text": text}]}]
        encoded = [encode_sample(row, [], tokenizer, IMAGE, VIDEO).tokens for row in rows]
        return int(np.isin(np.concatenate(encoded), control).sum())

    spelled = [name for key, name in SPECIAL_NAMES.items() if key not in meant]
    return {"control": sum(count(name) - count("x") for name in spelled)}


def box_faults(folder: Path) -> dict[str, int]:
    """Of RANDOM boxes: not found again, farther off than is said, other text than the chat template's, not stable."""
    judge = ChatJudge(folder)
    wrong = {"lost": 0, "far": 0, "template": 0, "unstable": 0, "tried": 0}

    def one(drawn: dict[str, Any]) -> None:
        text, scale = part_text({"type": "box", **drawn}), drawn["scale"]
        found = find_boxes(f"left {text} right")
        wrong["tried"] += 1
        if len(found) != 1:
            wrong["lost"] += 1
            return
        sides = [scale] * 4 if isinstance(scale, int) else scale * 2
        for value, back, side in zip(drawn["box"], unscaled(found[0].box, scale), sides, strict=True):
            allowed = Fraction(1, 2000) if value < side * Fraction(9995, 10000) else Fraction(1, 1000)
            wrong["far"] += abs(Fraction(back) / side - Fraction(value) / side) > allowed + Fraction(1, 10**12)
        shown = judge.render({"messages": [{"role": "user", "content": [{"type": "box", **drawn}]}]})
        wrong["template"] += f"user\n{text}<|im_end|>" not in shown
        wrong["unstable"] += box_text(found[0].box, 1000) != text

    _each(boxes(), one)
    return wrong


def page_faults(folder: Path) -> dict[str, Any]:
    """A page of hostile and of plain samples, as html.parser and a browser read it, and as it is seen in one."""
    with tempfile.TemporaryDirectory() as scratch:
        hostile: Source = plain_source(Path(scratch) / "hostile", folder, hostile=True)
        plain = plain_source(Path(scratch) / "plain", folder, hostile=False)
        page, shown = (read_page(source.page.read_text("utf-8")) for source in (hostile, plain))
        alive, unseen = list(page.foreign), len(plain.pictures)
        browser = find_browser(Path(scratch))
        if browser is not None:
            seen = read_page(browser.dom(hostile.page))
            alive += seen.foreign
            alive += [] if seen.text.strip() == page.text.strip() else ["other text"]
            screen = browser.screen(plain.page)
            unseen = sum(is_blank(screen) or not shows(screen, picture) for picture in plain.pictures)
        return {
            "unopened": int(browser is None),
            "alive": len(alive),
            "unseen": sum(text.replace("\n", "\u21b5\n") not in page.text for text in HOSTILE if text.isprintable()),
            "pictures": plain.other_pictures(shown),
            "screen": unseen,
            "boxes": plain.other_boxes(shown),
            "learnt": int(shown.marked("learnt").replace("\u21b5", "") != plain.learnt),
            "by": "html.parser, chromium" if browser is not None else f"html.parser alone; {INSTALL}",
        }


def _each(strategy: Any, one: Callable[[Any], None]) -> None:
    """`one` for each of RANDOM drawn samples, the same ones every time."""
    phases = [Phase.generate]
    checks = list(HealthCheck)
    drawn = settings(
        max_examples=RANDOM, deadline=None, database=None, derandomize=True, phases=phases, suppress_health_check=checks
    )
    drawn(given(strategy)(one))()
