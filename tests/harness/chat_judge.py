"""What transformers makes of a conversation: the ids of a tokenizer folder's own chat template, and Qwen's mask.

Text that spells control tokens would become control tokens there. So `<` and the keywords' flower are hidden while the
template renders, and put back, one character for one, before the text between the template's own tokens is tokenised.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.harness.hidden import FLOWER, hide, reveal

PUBLISHED = Path(__file__).resolve().parents[1] / "data" / "published_chat_template.json"
GROUNDING = re.compile(r"(<\|(?:object_ref|box|quad)_(?:start|end)\|>)")
CONTROL = re.compile(r"(<\|\w+\|>)")
ANSWER = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>\n", re.DOTALL)
# What is put into the assistant's turn: the results, and a picture with its number.
PUT_IN = (
    re.compile(f"(?<={FLOWER}RESULT{FLOWER}): .*?\n{FLOWER}RETURN{FLOWER}(?:: <\\|im_end\\|>\n)?", re.DOTALL),
    re.compile(r"<\|vision_start\|>.*?<\|vision_end\|>"),
)
NUMBER = re.compile(r"(?:Picture|Video) \d+: (?=<\|vision_start\|>)")


def published_template() -> str:
    """The chat template that Qwen2-VL-Instruct was published with; the file names its source."""
    return json.loads(PUBLISHED.read_text("utf-8"))["chat_template"]


class ChatJudge:
    """A tokenizer folder as transformers reads it; `template` takes the place of the folder's own."""

    def __init__(self, folder: Path, template: str | None = None) -> None:
        from transformers import AutoTokenizer

        self.peer: Any = AutoTokenizer.from_pretrained(folder)
        if template is not None:
            self.peer.chat_template = template

    def render(self, sample: Mapping[str, Any], **more: Any) -> str:
        """The text of the folder's template."""
        extra = {name: sample[name] for name in ("add_vision_id", "parallel_calls") if name in sample}
        text: str = self.peer.apply_chat_template(
            sample["messages"], tools=sample.get("tools"), tokenize=False, **extra, **more
        )
        return text

    def direct(self, sample: Mapping[str, Any]) -> list[int]:
        """Ids as transformers gives them in one call; for text that spells no control token."""
        return self.peer(self.render(sample), add_special_tokens=False)["input_ids"]

    def judge(
        self, sample: Mapping[str, Any], lengths: Sequence[int] = (), **more: Any
    ) -> tuple[list[int], list[bool]]:
        """(ids, learnt), both for every token; `lengths` are the visual tokens of each picture and clip."""
        text = self.render(hide(sample), **more)
        learnt = answers(text, numbered=bool(sample.get("add_vision_id")))
        remaining = iter(lengths)
        ids: list[int] = []
        mask: list[bool] = []
        place = 0
        for piece in CONTROL.split(text):
            if CONTROL.fullmatch(piece):
                count = next(remaining) if piece in ("<|image_pad|>", "<|video_pad|>") else 1
                ids += [self.peer.convert_tokens_to_ids(piece)] * count
                mask += [learnt[place]] * count
            else:
                for token, start in self.plain(reveal(piece)):
                    ids.append(token)
                    mask.append(learnt[place + start])
            place += len(piece)
        assert next(remaining, None) is None
        return ids, mask

    def judge_document(self, sample: Mapping[str, Any], lengths: Sequence[int]) -> tuple[list[int], list[bool]]:
        """The same for a document, which has no template: every part by itself, then the end."""
        remaining = iter(lengths)
        found: list[tuple[int, bool]] = []
        for part in sample["parts"]:
            if part["type"] in ("image", "video"):
                pads = [f"<|{part['type']}_pad|>"] * next(remaining)
                seen = ["<|vision_start|>", *pads, "<|vision_end|>"]
                found += [(self.peer.convert_tokens_to_ids(name), False) for name in seen]
            else:
                content = [{"role": "user", "content": [part]}]
                text = self.render({"messages": content}).rpartition("user\n")[2].removesuffix("<|im_end|>\n")
                found += [(token, not part.get("prefix", False)) for token, _ in self.plain(text)]
        found.append((self.peer.convert_tokens_to_ids("<|endoftext|>"), True))
        return [token for token, _ in found], [False, *(own for _, own in found[1:])]

    def plain(self, text: str) -> list[tuple[int, int]]:
        """(id, first character) of text in which only grounding tokens are more than characters."""
        found = []
        place = 0
        for piece in GROUNDING.split(text):
            if GROUNDING.fullmatch(piece):
                found.append((self.peer.convert_tokens_to_ids(piece), place))
            elif piece:
                out = self.peer(piece, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
                starts = [place + start for start, _ in out["offset_mapping"]]
                found += list(zip(out["input_ids"], starts, strict=True))
            place += len(piece)
        return found


def answers(text: str, numbered: bool) -> list[bool]:
    """For each character of a rendered conversation whether it is the assistant's own."""
    learnt = [False] * len(text)
    for answer in ANSWER.finditer(text):
        learnt[answer.start() : answer.end()] = [True] * len(answer[0])
    for put_in in (*PUT_IN, NUMBER) if numbered else PUT_IN:
        for match in put_in.finditer(text):
            learnt[match.start() : match.end()] = [False] * len(match[0])
    return learnt
