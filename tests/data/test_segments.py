"""Changes of the plan on the way: every sample once an epoch, whatever changes and however often."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig, ImageConfig, SourceConfig
from data.errors import MismatchError
from data.plan.order import samples_at
from data.plan.plan import Cursor, Plan, StepPlan, assign_rows
from data.plan.segments import Segment, check_same_plan, step_of
from data.plan.used import Drawn
from tests.data.test_plan import FakeIndex
from train.resolve import data_config
from train.segments import Course, course, saved_segments

ALL = ("sources", "rows_per_step", "tokens_per_row", "patches_per_row", "window", "weights_are", "image", "too_long")
Pool = dict[str, FakeIndex]
Named = tuple[tuple[str, int], ...]


def base(run_length: int = 1) -> DataConfig:
    return DataConfig(
        tokenizer="none",
        sources=(SourceConfig(name="a", path=""),),
        tokens_per_row=80,
        patches_per_row=60,
        rows_per_step=2,
        window=20,
        seed=3,
        run_length=run_length,
        image=ImageConfig(min_pixels=784, max_pixels=84 * 84),
    )


@dataclass
class Run:
    """A run in small: what it was fed and what its commits would say."""

    pool: Pool
    config: DataConfig
    course: Course = field(init=False)
    cursor: Cursor = field(init=False)
    fed: list[StepPlan] = field(default_factory=list)
    names: list[Named] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.course = course(self.config, self.indexes(self.config), None)
        self.cursor = self.course.cursor

    def indexes(self, config: DataConfig) -> Any:
        return [self.pool[source.name] for source in config.sources]

    def train(self, steps: int) -> None:
        for _ in range(steps):
            step = self.course.plan.step(self.cursor)
            self.fed.append(step)
            samples = [sample for row in step.rows for sample in row.samples]
            self.names.append(tuple((self.course.plan.config.sources[n].name, index) for n, index in samples))
            self.cursor = step.next_cursor

    def state(self) -> dict[str, Any]:
        saved: dict[str, Any] = json.loads(json.dumps(self.course.told(self.cursor) | {"step": len(self.fed)}))
        return saved

    def go_on(self, config: DataConfig, allowed: tuple[str, ...] = ALL) -> None:
        saved = self.state()
        self.course = course(config, self.indexes(config), saved, allowed)
        self.cursor = self.course.cursor

    def replayed(self, step: int) -> StepPlan:
        def plan_again(segment: Segment) -> Plan:
            config = data_config(segment.data)
            return Plan(config, self.indexes(config), segment.used)

        return step_of(saved_segments(self.state(), self.config), step, plan_again)

    def used(self, name: str) -> Counter[int]:
        return Counter(index for step in self.names for source, index in step if source == name)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Run, list[tuple[int, DataConfig]]]:
    """A run and the changes it goes through: (steps before it, what it goes on with)."""
    run_length = draw(st.sampled_from([1, 1, 2]))
    pool = {}
    for name in "abcd":
        size = draw(st.integers(4 * run_length, 40))
        tokens = draw(st.lists(st.integers(1, 40), min_size=size, max_size=size))
        sides = draw(st.lists(st.sampled_from([0, 28, 56, 84]), min_size=size, max_size=size))
        pool[name] = FakeIndex(f"digest of {name}", tokens, sides)

    def config(names: list[str]) -> DataConfig:
        return replace(
            base(run_length),
            sources=tuple(SourceConfig(name=name, path="", weight=draw(st.integers(1, 3))) for name in names),
            tokens_per_row=draw(st.integers(49, 120)),
            patches_per_row=draw(st.integers(36, 90)),
            rows_per_step=draw(st.integers(1, 5)),
            window=draw(st.integers(12, 60)),
        )

    def names() -> list[str]:
        return draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))

    changes = [(draw(st.integers(0, 9)), config(names())) for _ in range(draw(st.integers(1, 5)))]
    return Run(pool, config(names())), [*changes, (draw(st.integers(0, 9)), config(list("abcd")))]


@settings(max_examples=60)
@given(runs())
def test_an_epoch_has_every_sample_once_whatever_changes(made: tuple[Run, list[tuple[int, DataConfig]]]) -> None:
    run, changes = made
    for steps, config in changes:
        run.train(steps)
        run.go_on(config)
        assert not run.course.plan.used or run.course.cursor == run.cursor
        for name, drawn in run.course.plan.used_at(run.cursor).items():  # what was drawn and not used is left
            size = len(run.pool[name])
            drawn_samples = Counter(samples_at(3, name, size, np.arange(drawn.count), config.run_length).tolist())
            left = Counter(samples_at(3, name, size, drawn.left, config.run_length).tolist())
            assert run.used(name) + left == drawn_samples
    while run.cursor.row or any(len(drawn.left) for drawn in run.course.plan.used_at(run.cursor).values()):
        run.train(1)
        assert len(run.fed) < 3000
    for name, index in run.pool.items():
        used, size = run.used(name), len(index)
        whole = sum(used.values()) // size
        assert len(used) == size or not whole
        assert set(used.values()) <= {whole, whole + 1}, (name, used)


@settings(max_examples=30)
@given(runs(), st.data())
def test_any_past_step_is_planned_again_as_it_was_fed(
    made: tuple[Run, list[tuple[int, DataConfig]]], data: st.DataObject
) -> None:
    run, changes = made
    for steps, config in changes:
        run.train(steps)
        run.go_on(config)
    run.train(3)
    for step in data.draw(st.lists(st.integers(1, len(run.fed)), min_size=1, max_size=6)):
        assert run.replayed(step) == run.fed[step - 1]
    with pytest.raises(ValueError, match="no plan is known of step 0"):
        run.replayed(0)
    rows = run.fed[-1].rows
    for dp_size in range(1, len(rows) + 1):
        dealt = assign_rows(rows, dp_size)
        assert sorted(number for numbers in dealt for number in numbers) == list(range(len(rows)))
        assert {len(numbers) for numbers in dealt} <= {len(rows) // dp_size, -(-len(rows) // dp_size)}


@settings(max_examples=30)
@given(runs(), st.integers(0, 6))
def test_a_run_that_is_stopped_again_and_again_feeds_the_same(
    made: tuple[Run, list[tuple[int, DataConfig]]], stop: int
) -> None:
    """Going on without a change opens no segment, also within one that began with what another left."""
    run, changes = made
    other = Run(run.pool, run.config)
    for steps, config in changes:
        run.train(steps)
        other.train(min(stop, steps))
        other.go_on(other.course.plan.config)
        other.train(steps - min(stop, steps))
        run.go_on(config)
        other.go_on(config)
    run.train(4)
    other.train(4)
    assert run.fed == other.fed
    assert run.state() == other.state()


@given(st.sets(st.integers(0, 299)), st.integers(0, 50), st.integers(0, 40))
def test_what_is_left_comes_first_and_survives_a_checkpoint(left: set[int], more: int, start: int) -> None:
    drawn = Drawn(count=300 + more, left=np.array(sorted(left), dtype=np.int64))
    again = Drawn.from_dict(json.loads(json.dumps(drawn.to_dict())))
    assert again.count == drawn.count and np.array_equal(again.left, drawn.left)
    whole = [*sorted(left), *range(drawn.count, drawn.count + 100)]
    assert drawn.places(start, 50).tolist() == whole[start : start + 50]
    after = drawn.after(start, drawn.places(0, start)[::3])
    ahead = [*after.left, *range(after.count, drawn.count + 100)]
    assert ahead == sorted([*whole[:start:3], *whole[start:]])


def two_sources() -> Run:
    pool = {name: FakeIndex(f"digest of {name}", [5] * 30, [0] * 30) for name in "ab"}
    run = Run(pool, replace(base(), sources=(SourceConfig(name="a", path=""), SourceConfig(name="b", path=""))))
    run.train(3)
    return run


def test_what_was_not_asked_for_is_refused_with_the_cure() -> None:
    run = two_sources()
    wider = replace(run.config, window=40, tokens_per_row=100)
    with pytest.raises(
        MismatchError, match=r"window was 20 and is 40.*--allow data\.tokens_per_row --allow data\.window"
    ):
        run.go_on(wider, ())
    with pytest.raises(MismatchError, match=r"tokens_per_row was 80 and is 100"):
        run.go_on(wider, ("window",))
    for change, told in (({"seed": 9}, "seed was 3 and is 9"), ({"run_length": 2}, "run_length was 1 and is 2")):
        with pytest.raises(MismatchError, match=f"{told}.*order of samples itself.*init.from_run"):
            run.go_on(replace(run.config, **change), (*ALL, "seed", "run_length"))  # type: ignore[arg-type]
    run.go_on(wider)
    assert [segment.first_step for segment in run.course.segments] == [1, 4]


def test_another_index_under_a_name_that_was_used_is_refused_also_after_a_while() -> None:
    run = two_sources()
    alone = replace(run.config, sources=run.config.sources[:1])
    run.go_on(alone)
    run.train(2)
    old, run.pool["b"] = run.pool["b"], FakeIndex("another", [5] * 31, [0] * 31)
    with pytest.raises(MismatchError, match=r"data\.sources\.b: the index is not the one.*another name"):
        run.go_on(replace(alone, sources=run.config.sources))
    run.pool["c"] = run.pool["b"]
    run.go_on(replace(alone, sources=(*alone.sources, SourceConfig(name="c", path=""))))
    run.pool["b"] = old
    run.go_on(run.config)
    assert run.course.plan.used["b"].count > 0


def test_a_checkpoint_of_before_segments_goes_on_unchanged_only() -> None:
    run = two_sources()
    saved = {key: value for key, value in run.state().items() if key not in ("segments", "used")}
    went_on = course(run.config, run.indexes(run.config), saved)
    assert went_on.cursor == run.cursor and len(went_on.segments) == 1
    with pytest.raises(MismatchError, match=r"before plans had segments.*after the next checkpoint"):
        course(replace(run.config, window=30), run.indexes(run.config), saved, ALL)


def test_a_state_that_does_not_fit_itself_is_refused() -> None:
    run = two_sources()
    run.go_on(replace(run.config, window=30))
    plan = run.course.plan.identity
    with pytest.raises(MismatchError, match="does not fit itself"):
        check_same_plan(plan | {"used": "0"}, plan)


def test_what_a_window_leaves_takes_a_bit_for_each_sample() -> None:
    left = np.flatnonzero(np.random.default_rng(0).random(65536) < 0.5)
    assert len(json.dumps(Drawn(count=65536 * 100, left=left + 65536 * 99).to_dict())) < 65536 / 8 * 4 / 3 + 200
