"""Defects of conversations for tests/prove/data_chat.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from typing import Any

from tests.prove.data_defects import label_mask_encoded
from tests.prove.data_page_defects import PAGE_PLANTS
from tests.prove.planting import Mend, replace_name


def targets_not_shifted() -> Mend:
    """A place's target is its own token."""
    from data.encoding.encode import _Writer

    def make(finish: Any) -> Any:
        def planted(self: Any) -> Any:
            encoded = finish(self)
            learnt = encoded.targets >= 0
            encoded.targets[learnt] = encoded.tokens[learnt]
            return encoded

        return planted

    return replace_name(_Writer, "finish", make)


def results_learnt() -> Mend:
    """Tool results are the assistant's own words."""
    from data.encoding import render

    def make(_: Any) -> Any:
        def planted(page: Any, results: Any) -> None:
            for number, result in enumerate(results):
                page.text(f"\n{render.RESULT}", learnt=number == 0)
                page.text(": ", learnt=False)
                page.content(result, learnt=True)
            page.text(f"\n{render.RETURN}", learnt=False)

        return planted

    return replace_name(render, "_write_results", make)


def result_keyword_not_learnt() -> Mend:
    """Nothing teaches the model to stop for a result."""
    from data.encoding.render import _Page

    def make(text: Any) -> Any:
        return lambda self, value, learnt: text(self, value, learnt and "RESULT" not in value)

    return replace_name(_Page, "text", make)


def role_newline_learnt() -> Mend:
    """The newline after the assistant's name is learnt."""
    from data.encoding.render import _Page

    def make(_: Any) -> Any:
        def planted(self: Any, role: str) -> None:
            self.special("im_start")
            self.text(role, learnt=False)
            self.text("\n", learnt=role == "assistant")

        return planted

    return replace_name(_Page, "open_turn", make)


def users_learnt() -> Mend:
    """What the user says is learnt."""
    from data.encoding.render import _Page

    def make(content: Any) -> Any:
        return lambda self, message, learnt: content(self, message, learnt or message["role"] == "user")

    return replace_name(_Page, "content", make)


def end_not_learnt() -> Mend:
    """Nothing teaches the model to end its turn."""
    from data.encoding.render import _Page

    return replace_name(_Page, "end_turn", lambda real: lambda self, learnt: real(self, learnt=False))


def last_newline_not_learnt() -> Mend:
    """The newline after a turn of the assistant is not learnt."""
    from data.encoding.render import _Page

    def make(_: Any) -> Any:
        def planted(self: Any, learnt: bool) -> None:
            self.special("im_end", learnt)
            self.text("\n", learnt=False)

        return planted

    return replace_name(_Page, "end_turn", make)


def vision_learnt() -> Mend:
    """The marker after a picture is learnt."""
    from data.encoding.encode import _Writer

    def make(visual: Any) -> Any:
        def planted(self: Any, run: Any) -> None:
            visual(self, run)
            self.supervised[-1] = True

        return planted

    return replace_name(_Writer, "visual", make)


def prefix_learnt() -> Mend:
    """A document's prefix is learnt."""
    from data.encoding import render

    def make(parts: Any) -> Any:
        return lambda sample: [{**part, "prefix": False} for part in parts(sample)]

    return replace_name(render, "_document_parts", make)


def boxes_not_learnt() -> Mend:
    """In documents boxes and references are read only."""
    from data.encoding import render

    def make(parts: Any) -> Any:
        return lambda sample: [
            part | ({"prefix": True} if part["type"] in ("ref", "box") else {}) for part in parts(sample)
        ]

    return replace_name(render, "_document_parts", make)


def texts_apart() -> Mend:
    """Each text of a message is tokenised by itself."""
    from data.encoding.render import _Page

    def make(text: Any) -> Any:
        def planted(self: Any, value: str, learnt: bool) -> None:
            self.end_text()
            text(self, value, learnt)

        return planted

    return replace_name(_Page, "text", make)


def numbers_start_anew() -> Mend:
    """Pictures are numbered within each turn."""
    from data.encoding.render import _Page

    def make(open_turn: Any) -> Any:
        def planted(self: Any, role: str) -> None:
            self._shown = dict.fromkeys(self._shown, 0)
            open_turn(self, role)

        return planted

    return replace_name(_Page, "open_turn", make)


def numbers_forgotten() -> Mend:
    """Pictures have no numbers."""
    from data.encoding import render

    return replace_name(
        render, "_flag", lambda flag: lambda sample, name: name != "add_vision_id" and flag(sample, name)
    )


def other_default_system() -> Mend:
    """Without a system message, that of Qwen2.5 is put there."""
    from data.encoding import render

    return replace_name(
        render, "DEFAULT_SYSTEM", lambda _: "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    )


def tools_forgotten() -> Mend:
    """The system message does not list the tools."""
    from data.encoding import render

    return replace_name(render, "tools_text", lambda _: lambda tools, parallel: "")


def arguments_without_spaces() -> Mend:
    """Arguments are JSON with other spacing."""
    from data.encoding import agents

    return replace_name(agents, "_json", lambda real: lambda value: real(value).replace(": ", ":"))


def results_in_turns() -> Mend:
    """A result is a turn of its own, as are the words after it."""
    from data.encoding import render

    return replace_name(render, "_results", lambda _: lambda messages, place: [])


def control_tokens_in_text() -> Mend:
    """Text that spells a control token becomes one."""
    from data.encoding.tokenizer import Tokenizer

    def make(init: Any) -> Any:
        def planted(self: Any, backend: Any, *rest: Any) -> None:
            init(self, backend, *rest)
            backend.encode_special_tokens = False

        return planted

    return replace_name(Tokenizer, "__init__", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    f"chat_{apply.__name__}": (apply, tuple(f"chat/{case}" for case in cases))
    for apply, *cases in (
        (label_mask_encoded, "question_answering"),
        (targets_not_shifted, "random"),
        (results_learnt, "agent", "random"),
        (result_keyword_not_learnt, "agent"),
        (role_newline_learnt, "text_dialogue"),
        (users_learnt, "video_dialogue"),
        (end_not_learnt, "image_knowledge"),
        (last_newline_not_learnt, "video_stream"),
        (vision_learnt, "interleaved_article"),
        (prefix_learnt, "classification"),
        (boxes_not_learnt, "ocr"),
        (texts_apart, "random"),
        (numbers_start_anew, "random"),
        (numbers_forgotten, "multi_picture", "published"),
        (other_default_system, "published"),
        (tools_forgotten, "agent"),
        (arguments_without_spaces, "agent"),
        (results_in_turns, "random"),
        (control_tokens_in_text, "control tokens"),
    )
} | PAGE_PLANTS
