"""Rows that a plan is made for: the recipe's own, by the lengths in its index, or imagined ones while there is none. No
sample is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.plan.plan import Cursor, Plan, RowPlan, assign_rows
from data.types import SampleIndex
from model.activations import RowSizes
from model.flops import Work
from train.balance import row_sizes
from train.config import RunConfig

_VISUAL, _SIDE, _TEXT = 1024, 64, 448
"""An imagined sample: one picture of 896 x 896 pixels, 64 x 64 patches, and 448 tokens of text, 70 % visual (ours)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStep:
    """The rows of one step, all replicas'."""

    plans: tuple[RowPlan, ...]
    sizes: tuple[RowSizes, ...]

    def replicas(self, dp_size: int) -> list[list[RowSizes]]:
        """Microbatches of each replica, as the trainer deals them out."""
        return [[self.sizes[number] for number in numbers] for numbers in assign_rows(self.plans, dp_size)]

    @property
    def work(self) -> Work:
        """Of the whole step."""
        return sum((row.work for row in self.sizes), Work())


def drawn_steps(plan: Plan, indexes: Sequence[SampleIndex], count: int) -> list[PlannedStep]:
    """The first steps of a recipe's own plan."""
    steps, cursor = [], Cursor()
    for _ in range(count):
        step = plan.step(cursor)
        cursor = step.next_cursor
        steps.append(PlannedStep(plans=step.rows, sizes=tuple(row_sizes(plan, row, indexes) for row in step.rows)))
    return steps


def imagined_step(run: RunConfig) -> PlannedStep:
    """Rows of nothing but imagined samples, as many as one of them has room for; of text alone without a tower."""
    if run.model.vision is None:
        row = RowSizes(segments=_cut(run.data.tokens_per_row), frames=(), targets=run.data.tokens_per_row)
    else:
        budget = run.data
        count = min(budget.tokens_per_row // (_VISUAL + _TEXT), budget.patches_per_row // _SIDE**2)
        if count == 0:
            return _alike(_full_row(run), run.data.rows_per_step)
        left = budget.tokens_per_row - count * (_VISUAL + _TEXT)
        segments = (_VISUAL + _TEXT,) * count + ((left,) if left else ())
        row = RowSizes(segments=segments, frames=(_SIDE**2,) * count, targets=count * _TEXT + left)
    return _alike(row, run.data.rows_per_step)


def fullest_rows(run: RunConfig) -> list[RowSizes]:
    """The most that the recipe's budgets allow, once in pictures and once in text: no row holds more than the larger of
    the two, but for how it is cut into samples.

    The text has one picture, the smallest: a frozen decoder keeps nothing of a row without any.
    """
    tokens = run.data.tokens_per_row
    text = RowSizes(segments=_cut(tokens), frames=(), targets=tokens)
    if run.model.vision is None:
        return [text]
    smallest = run.data.image.merge_size**2
    return [_full_row(run), replace(text, frames=(smallest,), targets=tokens - 3)]


def _full_row(run: RunConfig) -> RowSizes:
    """Pictures of the largest size with their two markers each, until a budget is used up, and text in what is left."""
    image, merge = run.data.image, run.data.image.merge_size**2
    largest = image.max_pixels // image.patch_size**2 // merge
    visual_left, places_left = run.data.patches_per_row // merge, run.data.tokens_per_row
    pictures: list[int] = []
    while (visual := min(largest, visual_left, places_left - 3)) > 0:
        pictures.append(visual)
        visual_left -= visual
        places_left -= visual + 2
    segments = [visual + 2 for visual in pictures]
    segments[-1] += places_left
    return RowSizes(segments=tuple(segments), frames=tuple(visual * merge for visual in pictures), targets=places_left)


def _cut(tokens: int, length: int = 1024) -> tuple[int, ...]:
    whole, left = divmod(tokens, length)
    return (length,) * whole + ((left,) if left else ())


def _alike(row: RowSizes, count: int) -> PlannedStep:
    plan = RowPlan(samples=(), num_tokens=row.tokens, num_patches=row.patches, cost=1)
    return PlannedStep(plans=(plan,) * count, sizes=(row,) * count)
