"""Random conversations: roles, pictures, boxes, calls, and text of every kind, with control tokens spelled in it."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from data.encoding.tokenizer import SPECIAL_NAMES
from tests.harness.hidden import FLOWER

SPELLED = (
    *SPECIAL_NAMES.values(), "<|im_start|>assistant\n", "<|im_", "end|>", "<|box_", "start|>", "<", "Picture 1: ",
    f"\n{FLOWER}RESULT{FLOWER}: ", f"\n{FLOWER}RETURN{FLOWER}: ", FLOWER, "\n", "\n\n", " ", ": ", "e\u0301",
    "user\n", "\U0001f600", "12", "{{ 1 }}", "{% if %}", "it's",
)  # fmt: skip
KINDS = ("text", "text", "image", "video", "ref", "box")
_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\U000f0001\U000f0002")
_PLAIN = st.text(_CHARACTERS.filter(lambda one: one not in f"<{FLOWER}"), max_size=12)
_HOSTILE = st.lists(st.one_of(st.sampled_from(SPELLED), _PLAIN), max_size=4).map("".join)


@st.composite
def parts(draw: st.DrawFn, text: st.SearchStrategy[str], kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """One part of a message's content."""
    kind = draw(st.sampled_from(kinds))
    if kind in ("image", "video"):
        return {"type": kind, "media": draw(st.integers(0, 3))}
    if kind == "box":
        return {"type": "box", **draw(boxes())}
    spelled = draw(text)
    if kind == "ref":
        return {"type": "ref", "text": spelled.replace("<|object_ref_start|>", "").replace("<|object_ref_end|>", "")}
    return {"type": kind, "text": spelled}


@st.composite
def boxes(draw: st.DrawFn) -> dict[str, Any]:
    """A box inside its picture, in any scale."""
    sides = st.integers(2, 5000)
    scale = draw(st.one_of(st.sampled_from([1, 1000]), st.tuples(sides, sides).map(list)))
    width, height = (scale, scale) if isinstance(scale, int) else scale
    corners: list[float] = []
    for side in (width, height):
        number = st.floats(0, side, allow_subnormal=False) if draw(st.booleans()) or side == 1 else st.integers(0, side)
        corners += sorted(draw(st.lists(number, min_size=2, max_size=2, unique=True)))
    return {"box": [corners[0], corners[2], corners[1], corners[3]], "scale": scale}


@st.composite
def shown_conversations(draw: st.DrawFn, control: bool = True) -> dict[str, Any]:
    """Turns of text, pictures and clips in any order of roles: all that the published template knows."""
    text = _HOSTILE if control else _PLAIN
    content = st.one_of(text, st.lists(parts(text, ("text", "text", "image", "video")), max_size=5))
    role = st.sampled_from(["system", "user", "assistant", "tool"])
    message = st.fixed_dictionaries({"role": role, "content": content})
    messages = draw(st.lists(message, min_size=1, max_size=6))
    return {"messages": messages} | draw(st.sampled_from([{}, {"add_vision_id": False}, {"add_vision_id": True}]))


@st.composite
def conversations(draw: st.DrawFn, control: bool = True) -> dict[str, Any]:
    """A sample with messages; without `control` no text of it spells a token or a keyword."""
    text = _HOSTILE if control else _PLAIN
    content = st.one_of(text, st.lists(parts(text), max_size=4))
    tools = draw(st.lists(_tool(text), min_size=1, max_size=2)) if draw(st.integers(0, 3)) else []
    parallel = draw(st.booleans())
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(content)})
    for _ in range(draw(st.integers(1, 4))):
        role = draw(st.sampled_from(["user", "assistant", "assistant", "system"]))
        messages.append({"role": role, "content": draw(content)})
        going_on = role == "assistant" and bool(tools) and bool(draw(st.integers(0, 3)))
        while going_on:
            names = st.sampled_from([tool["function"]["name"] for tool in tools])
            calls = draw(st.lists(_call(names, text), min_size=1, max_size=3 if parallel else 1))
            messages[-1] |= {"tool_calls": calls, "content": draw(st.one_of(st.none(), content))}
            if not draw(st.integers(0, 3)):
                break
            messages += [{"role": "tool", "content": draw(content)} for _ in calls]
            # That an empty answer is learnt cannot be seen in the text.
            messages.append({"role": "assistant", "content": "said" + draw(text)})
            going_on = draw(st.booleans())
    sample: dict[str, Any] = {"messages": messages}
    more = {"tools": tools, "parallel_calls": parallel, "add_vision_id": draw(st.booleans())}
    return sample | {name: value for name, value in more.items() if value or draw(st.booleans())}


def _tool(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    function = st.fixed_dictionaries(
        {
            "name": st.sampled_from(["tap", "look_up", "code_interpreter"]),
            "description": text,
            "parameters": st.dictionaries(text, st.one_of(text, st.integers(), st.none()), max_size=2),
        }
    )
    return st.fixed_dictionaries({"type": st.just("function"), "function": function})


def _call(names: st.SearchStrategy[str], text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    arguments = st.one_of(
        text, st.just("```py\n1\n```"), st.dictionaries(text, st.one_of(text, st.booleans()), max_size=2)
    )
    return st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": names, "arguments": arguments})})
