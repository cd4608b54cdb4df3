"""Rows that a plan is made for: the recipe's own, by the lengths in its index, or imagined ones while there is none. No
sample is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
            row = _full_row(run)
        else:
            left = budget.tokens_per_row - count * (_VISUAL + _TEXT)
            segments = (_VISUAL + _TEXT,) * count + ((left,) if left else ())
            row = RowSizes(segments=segments, frames=(_SIDE**2,) * count, targets=count * _TEXT + left)
    return _alike(row, run.data.rows_per_step)


def fullest_rows(run: RunConfig) -> list[RowSizes]:
    """The most that the recipe's budgets allow, once in pictures and once in text: no row holds more than the larger of
    the two, but for how it is cut into samples."""
    text = RowSizes(segments=_cut(run.data.tokens_per_row), frames=(), targets=run.data.tokens_per_row)
    return [text] if run.model.vision is None else [_full_row(run), text]


def _full_row(run: RunConfig) -> RowSizes:
    """Pictures of the largest size, up to the budget of patches, and text in the places that are left."""
    budget, image = run.data, run.data.image
    largest = min(image.max_pixels // image.patch_size**2, budget.patches_per_row)
    count = max(1, budget.patches_per_row // largest)
    visual = largest // image.merge_size**2
    count = max(1, min(count, budget.tokens_per_row // visual))
    text = max(1, budget.tokens_per_row - count * visual)
    return RowSizes(segments=(visual,) * (count - 1) + (visual + text,), frames=(largest,) * count, targets=text)


def _cut(tokens: int, length: int = 1024) -> tuple[int, ...]:
    whole, left = divmod(tokens, length)
    return (length,) * whole + ((left,) if left else ())


def _alike(row: RowSizes, count: int) -> PlannedStep:
    plan = RowPlan(samples=(), num_tokens=row.tokens, num_patches=row.patches, cost=1)
    return PlannedStep(plans=(plan,) * count, sizes=(row,) * count)
