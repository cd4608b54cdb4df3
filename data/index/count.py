"""How long samples are and how much of them is learnt, many at once, without encoding them."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from data.encoding.render import Run, Text, Visual
from data.encoding.tokenizer import Tokenizer


class Count(NamedTuple):
    """Tokens of an encoded sample."""

    text: int
    """All but the visual ones: text, markers and template."""
    targets: int
    """That are to be predicted."""


def count_tokens(rendered: Sequence[Sequence[Run]], tokenizer: Tokenizer) -> list[Count]:
    """The counts of each rendered sample.

    Texts of all samples are tokenised in one call, which takes a third of the time; most are role headers and other
    texts that come again.
    """
    prefixes = [[_prefixes(run) if isinstance(run, Text) else () for run in runs] for runs in rendered]
    wanted = list(dict.fromkeys(prefix for of_runs in prefixes for of_run in of_runs for prefix in of_run))
    lengths = dict(zip(wanted, tokenizer.count(wanted), strict=True))
    return [_count(runs, of_runs, lengths) for runs, of_runs in zip(rendered, prefixes, strict=True)]


def _count(runs: Sequence[Run], prefixes: Sequence[Sequence[str]], lengths: Mapping[str, int]) -> Count:
    text = targets = 0
    for run, of_run in zip(runs, prefixes, strict=True):
        before = text
        if isinstance(run, Text):
            learnt = end = 0
            for (_, learns), prefix in zip(run.pieces, of_run, strict=True):
                start, end = end, lengths[prefix]
                if learns:
                    learnt += end - start
            text += end
            first = run.pieces[0][1] and lengths[of_run[0]] > 0
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
