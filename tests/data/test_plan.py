"""Order, packing and assignment by properties."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig, ImageConfig, SourceConfig
from data.errors import BudgetError, MismatchError
from data.index.build import open_index
from data.plan.lengths import capped, sample_lengths, source_lengths
from data.plan.order import LEAST_RUNS, next_window, samples_at, window_shares
from data.plan.packing import pack
from data.plan.permutation import order_key, permute
from data.plan.plan import Cursor, Plan, assign_rows
from data.plan.segments import check_same_plan
from data.visual.images import image_grid


@given(st.integers(1, 3000), st.binary(min_size=1, max_size=4))
def test_permutation_is_a_bijection(size: int, key: bytes) -> None:
    order = permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(order), np.arange(size))
    places = np.array([0, size - 1, size // 2])
    assert np.array_equal(permute(places, size, key), order[places])


def test_permutation_depends_on_its_key_and_mixes() -> None:
    one, two = (permute(np.arange(1000), 1000, order_key(seed, "source", 0)) for seed in (0, 1))
    assert (one == two).mean() < 0.01
    assert abs(np.corrcoef(one, np.arange(1000))[0, 1]) < 0.1
    first = [int(permute(np.array([0]), 10, order_key(seed, "s", 0))[0]) for seed in range(2000)]
    counts = np.bincount(first, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 30  # chi-squared with 9 degrees of freedom; 30 has p 0.0004


def rows_of(row_of: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(row_of == row).tolist() for row in range(int(row_of.max()) + 1)]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 80)), min_size=1, max_size=80), st.integers(0, 60))
def test_packing_keeps_both_budgets_and_every_sample(sizes: list[tuple[int, int]], spare: int) -> None:
    tokens, patches = np.array(sizes).T.copy()
    most = int(tokens.max()) + spare, int(patches.max()) + spare
    rows = rows_of(pack(tokens, patches, *most))
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    for row in rows:
        assert sum(tokens[i] for i in row) <= most[0] and sum(patches[i] for i in row) <= most[1]
    assert all(
        sum(tokens[i] for i in one + two) > most[0] or sum(patches[i] for i in one + two) > most[1]
        for n, one in enumerate(rows)
        for two in rows[n + 1 :]
    ), "two rows that would fit into one were left apart"


def test_packing_fills_rows() -> None:
    tokens = np.minimum(4000, np.random.default_rng(0).lognormal(5.5, 1, 2048).astype(np.int64) + 1)
    rows = pack(tokens, np.zeros_like(tokens), 4096, 0)
    assert tokens.sum() / (4096 * (rows.max() + 1)) > 0.99


class FakeIndex:
    """Lengths without shards: the plan asks for nothing else."""

    def __init__(self, name: str, tokens: list[int], sides: list[int]) -> None:
        self.digest = name
        kinds = np.array([side > 0 for side in sides])
        self.columns: dict[str, Any] = {
            "num_text_tokens": np.array(tokens, dtype=np.uint32),
            "media_end": np.cumsum(kinds).astype(np.uint64),
        }
        self._sides = [side for side in sides if side]
        rows: dict[str, Any] = {"kind": 0, "height": self._sides, "width": self._sides, "frames": 1, "fps": 0}
        self.columns |= {f"media_{k}": np.broadcast_to(v, len(self._sides)).astype(float) for k, v in rows.items()}

    def __len__(self) -> int:
        return len(self.columns["num_text_tokens"])

    def media_size(self, row: int) -> SimpleNamespace:
        return SimpleNamespace(kind="image", height=self._sides[row], width=self._sides[row])

    def media_sizes(self, i: int) -> list[SimpleNamespace]:
        ends = [0, *self.columns["media_end"].tolist()]
        return [self.media_size(row) for row in range(ends[i], ends[i + 1])]

    def where(self, i: int) -> str:
        return f"fake[{i}]"


@st.composite
def plans(draw: st.DrawFn) -> tuple[DataConfig, list[FakeIndex]]:
    count = draw(st.integers(1, 3))
    indexes = []
    for n in range(count):
        size = draw(st.integers(1, 40))
        tokens = draw(st.lists(st.integers(1, 40), min_size=size, max_size=size))
        sides = draw(st.lists(st.sampled_from([0, 28, 56, 84]), min_size=size, max_size=size))
        indexes.append(FakeIndex(f"i{n}", tokens, sides))
    weights = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    fewest = min(len(index) for index in indexes)
    config = DataConfig(
        tokenizer="none",
        sources=tuple(SourceConfig(name=f"s{n}", path="", weight=w) for n, w in enumerate(weights)),
        tokens_per_row=draw(st.integers(49, 120)),
        patches_per_row=draw(st.integers(36, 90)),
        rows_per_step=draw(st.sampled_from([1, 4, 6])),
        window=draw(st.integers(12, 50)),
        seed=draw(st.integers(0, 5)),
        run_length=draw(st.sampled_from([n for n in (1, 1, 2, 5) if n == 1 or fewest // n >= LEAST_RUNS])),
        image=ImageConfig(min_pixels=784, max_pixels=84 * 84),
    )
    return config, indexes


@settings(max_examples=60)
@given(plans())
def test_windows_have_exact_shares_and_epochs_every_sample_once(made: tuple[DataConfig, list[FakeIndex]]) -> None:
    config, indexes = made
    plan = Plan(config, indexes)  # type: ignore[arg-type]
    assert sum(plan.shares) == config.window
    streams: list[list[int]] = [[] for _ in indexes]
    for window in range(8):
        samples = plan.window_samples(window)
        assert [sum(s == n for s, _ in samples) for n in range(len(indexes))] == plan.shares
        for source_id, index in samples:
            streams[source_id].append(index)
    for stream, fake in zip(streams, indexes, strict=True):
        size = len(fake)
        for epoch in range(len(stream) // size):
            assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


@settings(max_examples=60)
@given(plans(), st.integers(0, 5))
def test_steps_hold_the_windows_rows_within_budgets_from_any_cursor(
    made: tuple[DataConfig, list[FakeIndex]], stop: int
) -> None:
    config, indexes = made
    plan = Plan(config, indexes)  # type: ignore[arg-type]
    lengths = [sample_lengths(index, config.image, config.video) for index in indexes]  # type: ignore[arg-type]
    steps, cursors = [], [Cursor()]
    for _ in range(7):
        steps.append(plan.step(cursors[-1]))
        cursors.append(steps[-1].next_cursor)
    for step in steps:
        assert len(step.rows) == config.rows_per_step
        for row in step.rows:
            assert row.num_tokens == sum(lengths[s][0][i] for s, i in row.samples) <= config.tokens_per_row
            assert row.num_patches == sum(lengths[s][1][i] for s, i in row.samples) <= config.patches_per_row
    resumed = Plan(config, indexes)  # type: ignore[arg-type]
    cursor = Cursor.from_dict(cursors[stop].to_dict())
    for step in steps[stop:]:
        again = resumed.step(cursor)
        assert again == step and again.digest() == step.digest()
        cursor = again.next_cursor
    windows = (
        sample
        for window in range(cursors[-1].window + 1)
        for sample in [Counter(map(tuple, plan.window_samples(window).tolist()))]
    )
    read = Counter(sample for step in steps for row in step.rows for sample in row.samples)
    complete = sum(islice(windows, cursors[-1].window), Counter())
    assert not complete - read, "a sample of a finished window was never trained on"


@settings(max_examples=40)
@given(plans(), st.sampled_from([1, 2, 3]))
def test_replicas_share_the_same_rows_in_counts_that_differ_by_one_at_most(
    made: tuple[DataConfig, list[FakeIndex]], dp_size: int
) -> None:
    config, indexes = made
    rows = Plan(config, indexes).step(Cursor()).rows  # type: ignore[arg-type]
    if len(rows) < dp_size:
        with pytest.raises(ValueError, match=rf"{len(rows)} rows .* none for some of {dp_size} replicas; start fewer"):
            assign_rows(rows, dp_size)
        return
    assigned = assign_rows(rows, dp_size)
    assert sorted(number for numbers in assigned for number in numbers) == list(range(len(rows)))
    assert {len(numbers) for numbers in assigned} == {len(rows) // dp_size, -(-len(rows) // dp_size)}


def test_assignment_balances_cost() -> None:
    rows = [SimpleNamespace(cost=cost) for cost in (9, 1, 8, 2)]
    assert sorted(assign_rows(rows, 2)) == [[0, 1], [2, 3]]  # type: ignore[arg-type]


def test_the_endless_sequence_does_not_depend_on_where_it_is_entered() -> None:
    for run_length in (1, 3, 10):
        whole = samples_at(3, "s", 7, np.arange(50), run_length)
        assert np.array_equal(samples_at(3, "s", 7, np.arange(13, 33), run_length), whole[13:33])


def test_runs_stay_together_in_the_order_and_in_rows() -> None:
    order = samples_at(0, "s", 103, np.arange(103), 10)
    assert (order[:100].reshape(10, 10) % 10 == np.arange(10)).all() and order[100:].tolist() == [100, 101, 102]
    assert order[:100:10].tolist() != sorted(order[:100:10].tolist())
    sources = (SourceConfig(name="a", path=""), SourceConfig(name="b", path=""))
    config = DataConfig(
        tokenizer="",
        sources=sources,
        tokens_per_row=800,
        patches_per_row=0,
        rows_per_step=1,
        window=200,
        seed=0,
        run_length=10,
    )
    plan = Plan(config, [FakeIndex("a", [10] * 100, [0] * 100), FakeIndex("b", [30] * 100, [0] * 100)])  # type: ignore[list-item]
    rows, cursor = [], Cursor()
    while cursor.window == 0:
        step = plan.step(cursor)
        rows, cursor = [*rows, *step.rows], step.next_cursor
    requests = [sum((s, i - 1) not in row.samples for s, i in row.samples) for row in rows]
    # A run of a takes an eighth of a row and is whole; one of b is cut into threes by that limit.
    assert sum(requests) <= 10 + 40 and sum(row.num_tokens for row in rows) == 4000
    assert len(rows) <= 6
    with pytest.raises(BudgetError, match=r"run_length 30 leaves fewer than 4 runs .*\('a', 100, 3\).*lower it"):
        Plan(replace(config, run_length=30), [FakeIndex("a", [10] * 100, [0] * 100)] * 2)  # type: ignore[list-item]


def test_shares_of_tokens_are_met_within_a_window() -> None:
    generator = np.random.default_rng(0)
    lengths = [generator.integers(10, 30, 500).tolist(), generator.integers(200, 400, 500).tolist()]
    config = DataConfig(
        tokenizer="",
        sources=(SourceConfig(name="short", path="", weight=3.0), SourceConfig(name="long", path="", weight=1.0)),
        tokens_per_row=1000,
        patches_per_row=0,
        rows_per_step=1,
        window=2000,
        seed=0,
        weights_are="tokens",
    )
    plan = Plan(config, [FakeIndex(str(n), each, [0] * 500) for n, each in enumerate(lengths)])  # type: ignore[misc]
    tokens = [0, 0]
    for source_id, index in plan.window_samples(0).tolist():
        tokens[source_id] += lengths[source_id][index]
    assert abs(tokens[0] / sum(tokens) - 0.75) < 0.01


def test_what_no_row_takes_is_shrunk_if_the_recipe_says_so() -> None:
    def config(too_long: str) -> DataConfig:
        return DataConfig(
            tokenizer="",
            sources=(SourceConfig(name="big", path=""),),
            tokens_per_row=100,
            patches_per_row=300,
            rows_per_step=1,
            window=3,
            seed=0,
            too_long=too_long,  # type: ignore[arg-type]
            image=ImageConfig(min_pixels=784, max_pixels=2800 * 2800),
        )

    index = FakeIndex("i", [10, 10, 99], [280, 2800, 28])
    with pytest.raises(BudgetError, match=r"2 of 3 samples do not fit a row.*data\.too_long=shrink"):
        Plan(config("refuse"), [index])  # type: ignore[list-item]
    plan = Plan(config("shrink"), [index])  # type: ignore[list-item]
    lengths = [plan.num_tokens(0, number) for number in range(3)]
    assert lengths[2] == 100 and 60 < lengths[0] <= 85 and 60 < lengths[1] <= 85, lengths
    for number, side in ((0, 280), (1, 2800)):
        cap = source_lengths(plan.config, 0, index).caps[number]  # type: ignore[arg-type]
        image, _ = capped(plan.config.image, plan.config.video, cap)
        assert image_grid(side, side, image).num_tokens == lengths[number] - 10
    with pytest.raises(BudgetError, match=r"1 of 1 samples do not fit a row, however small their pictures"):
        Plan(config("shrink"), [FakeIndex("i", [98], [2800])])  # type: ignore[list-item]


def test_a_source_without_a_share_is_refused_with_numbers() -> None:
    sources = (SourceConfig(name="big", path="", weight=100.0), SourceConfig(name="tiny", path="", weight=0.1))
    config = DataConfig(
        tokenizer="", sources=sources, tokens_per_row=1, patches_per_row=0, rows_per_step=1, window=64, seed=0
    )
    with pytest.raises(BudgetError, match=r"window of 64 samples has none of \[\('tiny', 0.1\)\]"):
        window_shares(config, [])


def test_samples_over_budget_and_changed_plans_are_refused(
    make_source: Callable[..., Path], make_config: Callable[..., DataConfig]
) -> None:
    folder = make_source(clips=False)
    indexes = [open_index(folder)]
    plan = Plan(make_config(folder), indexes)
    with pytest.raises(BudgetError, match=r"mixed-000000\.tar\[.*tokens and .* patches \(a row takes 160 and 12\)"):
        Plan(make_config(folder, patches_per_row=12), indexes)
    moved = Plan(make_config(folder, prefetch_steps=5), indexes)
    assert moved.fingerprint == plan.fingerprint
    check_same_plan(moved.identity, plan.identity)
    other = Plan(make_config(folder, seed=4), indexes)
    assert other.fingerprint != plan.fingerprint
    with pytest.raises(MismatchError, match="seed was 4 and is 3"):
        check_same_plan(other.identity, plan.identity)


@settings(max_examples=100)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 30), st.sampled_from([1, 3, 7]))
def test_the_next_window_of_a_sample_is_where_it_comes_again(size: int, share: int, window: int, run: int) -> None:
    order = samples_at(5, "s", size, np.arange((window + 2) * share + 3 * size), run)
    for index in {0, size // 2, size - 1}:
        places = np.flatnonzero(order == index)
        expected = next(place // share for place in places.tolist() if place // share > window)
        assert next_window(5, "s", size, share, index, window, run) == expected
