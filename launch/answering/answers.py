"""What a checkpoint answers to held-out samples, in words: the table of an evaluation.

It is made in transformers from the checkpoint, in a process beside training. In training itself, generation would need
a cache of keys and values, a loop through the pipeline for every token, and both on every layout: a second way of
running the model, for a look at a few samples. The price is a process that holds the whole model, on the host's memory
or a GPU of its own.
"""

from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.errors import FormatError, SampleError
from data.index.file import Index
from data.loading.media import PatchReader
from data.plan.plan import Plan
from data.types import Grid
from launch.answering.generate import generate
from launch.answering.judge import is_correct
from launch.answering.loaded import Loaded, load
from launch.answering.questions import Prompt, answer_text, prompt_of, prompt_text
from launch.checkpoints.export import run_of
from train.checkpoint.commits import open_commit
from train.config import EvaluateConfig
from train.held_out import held_out
from train.shown import Shown, pictures_of


def answers_of(commit: Path, evaluate: EvaluateConfig) -> list[Shown]:
    """The first `evaluate.answers` samples of each source, in the order in which losses are taken, with the answers.

    Samples without an answer, of token files, and such as cannot be read are passed over.

    Raises ValueError: checkpoint, sources and tokenizer do not belong together.
    """
    run = run_of(open_commit(commit))
    data, indexes = held_out(run.data, evaluate)
    loaded = load(commit)
    drawn = Plan(data, indexes).window_samples(0)
    reader = PatchReader(data.image, data.video)
    asked: list[tuple[str, Index, int, Prompt]] = []
    try:
        for source, index in enumerate(indexes):
            if isinstance(index, Index):
                name = data.sources[source].name
                for number in drawn[drawn[:, 0] == source, 1][: evaluate.answers].tolist():
                    try:
                        prompt = prompt_of(index, number, data, loaded.tokenizer, reader)
                    except (FormatError, SampleError):
                        continue
                    asked.append((name, index, number, prompt))
    finally:
        reader.close()
    return _answered(asked, loaded, data, evaluate.answer_tokens)


def _answered(
    asked: list[tuple[str, Index, int, Prompt]], loaded: Loaded, data: DataConfig, tokens: int
) -> list[Shown]:
    prompts = [prompt for *_, prompt in asked]
    pad, device = loaded.tokenizer.ids.end_of_text, str(loaded.model.device)
    found = generate(loaded.model, prompts, end=loaded.end, pad=pad, most=tokens, device=device)
    shown = []
    for (name, index, number, prompt), ids in zip(asked, found, strict=True):
        content = index.read_raw(number).content
        answer, judged = loaded.tokenizer.decode(ids).strip(), content.get("eval")
        shown.append(
            Shown(
                source=name,
                sample=f"{name}:{number}",
                prompt=prompt_text(content),
                expected=answer_text(content),
                answer=answer,
                right=is_correct(str(judged["metric"]), str(judged["answer"]), answer) if judged else None,
                pictures=pictures_of(prompt.patches, _grids(prompt, data), data.image),
            )
        )
    return shown


def _grids(prompt: Prompt, data: DataConfig) -> list[Grid]:
    patch, merge = data.image.patch_size, data.image.merge_size
    sizes = np.asarray(prompt.encoded.grids).tolist()
    return [Grid(time=t, height=h * patch, width=w * patch, patch_size=patch, merge_size=merge) for t, h, w in sizes]
