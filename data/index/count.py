"""How long samples are and how much of them is learnt, many at once, without encoding them."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from data.encoding.render import Run, Text, Visual, render_sample
from data.encoding.tokenizer import Tokenizer
from data.errors import FormatError


class Count(NamedTuple):
    """Tokens of an encoded sample."""

    text: int
    """All but the visual ones: text, markers and template."""
    targets: int
    """That are to be predicted."""


def count_tokens(samples: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[Count | FormatError]:
    """For each sample its counts, or the error that rendering it raises.

    Texts of all samples are tokenised in one call, which takes a third of the time; most are role headers and other
    texts that come again.
    """
    rendered: list[list[Run] | FormatError] = []
    for sample in samples:
        try:
            rendered.append(render_sample(sample))
        except FormatError as error:
            rendered.append(error)
    wanted = dict.fromkeys(
        prefix
        for runs in rendered
        if isinstance(runs, list)
        for run in runs
        if isinstance(run, Text)
        for prefix in _prefixes(run)
    )
    lengths = dict(zip(wanted, tokenizer.count(list(wanted)), strict=True))
    return [runs if isinstance(runs, FormatError) else _count(runs, lengths) for runs in rendered]


def _count(runs: Sequence[Run], lengths: Mapping[str, int]) -> Count:
    text = targets = 0
    for run in runs:
        before = text
        if isinstance(run, Text):
            ends = [lengths[prefix] for prefix in _prefixes(run)]
            text += ends[-1]
            learnt = sum(
                end - start for (_, learns), start, end in zip(run.pieces, [0, *ends], ends, strict=False) if learns
            )
            first = run.pieces[0][1] and ends[0] > 0
        else:
            text += 2 if isinstance(run, Visual) else 1  # a picture's two markers
            learnt = first = not isinstance(run, Visual) and run.learnt
        # Nothing comes before a sample's first token that could predict it.
        targets += learnt - (before == 0 and first)
    return Count(text, targets)


def _prefixes(run: Text) -> list[str]:
    """The text up to the end of each piece. A token over a border counts for the piece that it begins in, so what a
    piece has is the growth from one prefix to the next; a newline at the start of an answer joins the header's."""
    return list(accumulate(text for text, _ in run.pieces))
