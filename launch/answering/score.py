"""How well an exported folder answers the held-out questions, by greedy generation in transformers."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data.config import DataConfig
from data.encoding.tokenizer import Tokenizer, load_tokenizer
from launch.answering.generate import generate, mean_loss
from launch.answering.judge import constant_share, is_correct
from launch.answering.questions import Prompt, Question, caption_prompts, grey_prompt, read_questions

LONGEST_ANSWER = 32  # tokens; the longest expected one of the sample data is a box of about 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Heldout:
    """Everything a model is asked, read once and used for every stage."""

    data: DataConfig
    tokenizer: Tokenizer
    questions: dict[str, list[Question]]
    """By task."""
    captions: tuple[list[Prompt], list[Prompt]]
    """Documents with their own picture, and with another's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What one folder answered."""

    answers: dict[str, list[str]]
    """By task, in the order of the questions."""
    shares: dict[str, float]
    """By task: right answers / questions."""
    seconds: float
    losses: dict[str, float] = field(default_factory=dict)
    """Caption loss in nats a token with the right and the shuffled picture."""


def read_heldout(folder: Path, data: DataConfig, limit: int | None = None) -> Heldout:
    """Held-out sources below `folder`, indexed. Raises ValueError if no sample declares an answer."""
    tokenizer = load_tokenizer(data.tokenizer)
    questions: dict[str, list[Question]] = {}
    for source in sorted(path.parent.parent for path in folder.glob("*/index/index.json")):
        if source.name.startswith("document_"):
            continue
        for question in read_questions(source, data, tokenizer, limit):
            questions.setdefault(question.task, []).append(question)
    if not questions:
        raise ValueError(f"no held-out sample below {folder} has an `eval` field; make the sample data again")
    captions = caption_prompts(folder / "document_captions", data, tokenizer, limit)
    return Heldout(data=data, tokenizer=tokenizer, questions=questions, captions=captions)


def score_folder(folder: Path, heldout: Heldout, *, grey: bool = False, losses: bool = False) -> Score:
    """Answer every question with the model in `folder`; `grey` hides what the pictures and clips show."""
    started = time.perf_counter()
    model = _load(folder)
    asked = [question for task in heldout.questions.values() for question in task]
    prompts = [grey_prompt(question.prompt, heldout.data) if grey else question.prompt for question in asked]
    ids = heldout.tokenizer.ids
    device = str(model.device)
    end = (ids.im_end, ids.end_of_text)
    found = generate(model, prompts, end=end, pad=ids.end_of_text, most=LONGEST_ANSWER, device=device)
    answers: dict[str, list[str]] = {task: [] for task in heldout.questions}
    for question, tokens in zip(asked, found, strict=True):
        answers[question.task].append(heldout.tokenizer.decode(tokens).strip())
    measured = {}
    if losses:
        for name, documents in zip(("right", "shuffled"), heldout.captions, strict=True):
            measured[name] = mean_loss(model, documents, pad=ids.end_of_text, device=device)
    return Score(
        answers=answers,
        shares={task: _share(heldout.questions[task], given) for task, given in answers.items()},
        losses=measured,
        seconds=time.perf_counter() - started,
    )


def constant_shares(heldout: Heldout) -> dict[str, float]:
    """By task: the share that the best constant answer gets right."""
    return {
        task: constant_share(asked[0].metric, [question.expected for question in asked])
        for task, asked in heldout.questions.items()
    }


def _share(asked: Sequence[Question], given: Sequence[str]) -> float:
    right = sum(is_correct(q.metric, q.expected, answer) for q, answer in zip(asked, given, strict=True))
    return right / len(asked)


def _load(folder: Path) -> Any:
    import transformers  # seconds to import; the rest of launch/ starts without it

    transformers.utils.logging.disable_progress_bar()
    # dtype: scores should not depend on what a folder was stored in.
    model: Any = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
