"""`triptych plan`: what it says, what it refuses, and for which rows."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from launch.planning.plan import Asked, machine_of, planned, recipes_of
from launch.planning.rows import drawn_steps, fullest_rows, imagined_step
from launch.planning.search import Search, worlds
from launch.planning.stage import Rows, StagePlan, plan_stage, stage_rows
from parallel.config import ParallelConfig
from tests.harness.layouts import STAGES
from tests.harness.runs import data_config, make_data, model_config
from tests.launch.commands import end
from train.config import RunConfig
from train.ready import open_data
from train.resolve import compose

H800 = machine_of("h800", 8, 50e9, 0.55)


TRAINED = 2_208_985_600
"""Elements of the 2B."""


def large(name: str, rows: int = 16) -> RunConfig:
    """A recipe with few rows, so that its plan takes a moment."""
    return compose(name, [f"data.rows_per_step={rows}"])


def rows_of(run: RunConfig) -> Rows:
    return Rows(steps=(imagined_step(run),), said="imagined")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run whose data are there."""
    folder = make_data(tmp_path_factory.mktemp("plan"))
    run = compose("quickstart_stage2")
    stage = replace(run.stage, trainable=STAGES["stage2"])
    return replace(run, model=model_config(), data=data_config(folder), stage=stage, parallel=ParallelConfig())


def test_rows_are_the_recipes_own_where_its_data_are(small: RunConfig) -> None:
    rows = stage_rows(small)
    _, indexes, plan = open_data(small)
    (step, *_) = drawn_steps(plan, indexes, 1)
    assert rows.steps[0] == step and len(step.sizes) == small.data.rows_per_step
    assert [row.tokens for row in step.sizes] == [row.num_tokens for row in step.plans]
    assert [row.patches for row in step.sizes] == [row.num_patches for row in step.plans]
    assert "drawn from 40 samples" in rows.said


def test_rows_are_imagined_where_there_are_no_data(tmp_path: Path) -> None:
    run = large("qwen2vl_7b_stage2")
    rows = stage_rows(replace(run, data=replace(run.data, tokenizer=str(tmp_path / "none"))))
    assert rows.said.startswith("imagined rows") and "no tokenizer.json" in rows.said
    for row in (*rows.steps[0].sizes, *fullest_rows(run)):
        assert row.tokens == run.data.tokens_per_row
        assert row.patches <= run.data.patches_per_row
    assert run.data.patches_per_row - 100 < fullest_rows(run)[0].patches  # four pictures need markers as well


def test_a_plan_says_what_it_holds(small: RunConfig) -> None:
    run = replace(small, parallel=ParallelConfig(tensor=2, pipeline=2, split="auto"))
    plan = plan_stage(run, stage_rows(run), 8, H800)
    assert plan.data_size == 2 and sum(plan.run.parallel.split or ()) == 4
    for drawn, full in zip(plan.drawn, plan.fullest, strict=True):
        assert drawn.weights == full.weights and drawn.most <= full.most
        # Gradients are of fp32 and the rank's own, masters and moments three times that over the data axis.
        assert drawn.optimizer == pytest.approx(drawn.gradients * 3 / 2, rel=0.01)
    assert plan.tokens_per_second == plan.work.tokens / plan.time.seconds
    assert 0 < plan.mfu < plan.machine.efficiency


def test_more_rows_make_the_bubble_smaller() -> None:
    # The tower is not most of the work, so that pipeline stages can be even and wait only to fill and drain.
    layout = ["parallel.tensor=4", "parallel.pipeline=2", "parallel.split=auto"]
    plans = []
    for rows in (4, 16):
        run = compose("qwen2vl_7b_stage2", [f"data.rows_per_step={rows}", *layout])
        plans.append(plan_stage(run, rows_of(run), 8, H800))
    few, many = (plan.time.timeline.bubble for plan in plans)
    assert 0.1 < few < 0.3 and many < few - 0.05


def test_what_does_not_fit_says_what_would() -> None:
    report = planned(
        "qwen2vl_72b_stage3",
        ["data.rows_per_step=16", "parallel.tensor=8", "parallel.pipeline=1", "parallel.split=null"],
        Asked(gpus=8, machine=H800),
    )
    assert not report.good
    refused, cure = report.lines[-2:]
    assert refused.startswith("DOES NOT FIT: a rank of pipeline stage 0 may need ")
    assert "73.8 are to be had" in refused and "no layout on 8: the leanest, tensor 8 x" in cure
    assert "73.8 are to be had; 24 are the fewest" in cure


def test_a_search_without_a_find_is_refused() -> None:
    report = planned("qwen2vl_72b_stage2", ["data.rows_per_step=16"], Asked(gpus=8, machine=H800, search=True))
    assert not report.good and report.data[0]["layouts"] == [] and not report.data[0]["fits"]
    (said,) = report.lines
    assert re.search(r"no layout fits 8 H800: the leanest, .*; \d+ are the fewest", said), said


def test_a_search_goes_on_after_a_stage_that_fits_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpus", 1, "--gpu", "h800", "--search", "--json", "data.rows_per_step=4"]
    assert end("plan", "--config-name", "qwen2vl_7b", *arguments) == 1
    found = json.loads(capsys.readouterr().out)
    assert [stage["recipe"] for stage in found] == recipes_of("qwen2vl_7b")
    assert [stage["fits"] for stage in found] == [bool(stage["layouts"]) for stage in found]
    assert not all(stage["fits"] for stage in found)


def test_a_tied_embedding_is_summed_over_the_ends_of_the_pipeline() -> None:
    plans = {}
    for name in ("qwen2vl_2b_stage1", "qwen2vl_2b_stage2"):
        for pipeline in (1, 2):
            run = large(name)
            run = replace(run, parallel=ParallelConfig(pipeline=pipeline))
            plans[name, pipeline] = plan_stage(run, rows_of(run), 2, H800)
    embedding = 151936 * 1536 * 4
    frozen, trained = (plans[f"qwen2vl_2b_stage{stage}", 2].time for stage in (1, 2))
    assert trained.traffic.pipeline - frozen.traffic.pipeline == embedding
    assert trained.reduction >= embedding / H800.bandwidth(2)
    assert plans["qwen2vl_2b_stage2", 1].time.traffic.pipeline == 0


def test_messages_and_calls_take_time_of_their_own() -> None:
    run = large("qwen2vl_2b_stage2")
    run = replace(run, parallel=ParallelConfig(tensor=2))
    seconds = {
        (message, layer): plan_stage(
            run, rows_of(run), 2, replace(H800, message_seconds=message, layer_seconds=layer)
        ).time.seconds
        for message in (0.0, 1.0)
        for layer in (0.0, 1.0)
    }
    rows = rows_of(run).steps[0].replicas(1)[0]
    # Of each row all layers, of tower and language model, go forward and back, and nothing is computed again.
    blocks = 2 * (run.model.vision.depth + run.model.language.num_layers) * len(rows)
    assert seconds[0.0, 1.0] - seconds[0.0, 0.0] == pytest.approx(blocks)
    # An all-reduce of two rounds for each half of a layer, one of the embedding, one of the head and three of the loss.
    rounds = 2 * (2 * blocks + (1 + 1 + 3) * len(rows))
    assert seconds[1.0, 0.0] - seconds[0.0, 0.0] == pytest.approx(rounds)


def test_a_reduction_and_a_pipeline_pay_for_their_messages() -> None:
    run = large("qwen2vl_2b_stage2", rows=2)
    taken = {}
    for layout, parallel in (("data", ParallelConfig()), ("pipeline", ParallelConfig(pipeline=2))):
        plain, slow = (
            plan_stage(replace(run, parallel=parallel), rows_of(run), 2, replace(H800, message_seconds=seconds))
            for seconds in (0.0, 1e3)
        )
        taken[layout] = (slow.time.seconds - plain.time.seconds) / 1e3
    buckets = -(-TRAINED // ParallelConfig().reduce_bucket_elements)
    assert taken["data"] == pytest.approx(2 * buckets + 1)
    # There and back: the second row's messages are on their way at the same time.
    assert taken["pipeline"] == pytest.approx(2, abs=0.001)


@pytest.mark.parametrize(("pipeline", "chunks", "sent"), [(2, 1, 1), (2, 2, 3), (4, 1, 2), (4, 2, 4)])
def test_a_rank_sends_hidden_states_on_and_gradients_back(pipeline: int, chunks: int, sent: int) -> None:
    run = large("qwen2vl_7b_stage2", rows=4)
    parallel = ParallelConfig(pipeline=pipeline, chunks=chunks)
    (rows,) = rows_of(run).steps[0].replicas(1)
    plan = plan_stage(replace(run, parallel=parallel), rows_of(run), pipeline, H800)
    # bf16; the 7B ties no embedding, whose gradient would be a message as well
    assert plan.time.traffic.pipeline == sent * sum(row.tokens for row in rows) * run.model.language.hidden_size * 2


def test_memory_takes_time_to_read_and_write() -> None:
    run = large("qwen2vl_2b_stage2", rows=2)
    seconds = []
    for bandwidth in (H800.gpu.memory_bandwidth, H800.gpu.memory_bandwidth / 1e3):
        machine = replace(H800, gpu=replace(H800.gpu, memory_bandwidth=bandwidth))
        seconds.append(plan_stage(replace(run, parallel=ParallelConfig()), rows_of(run), 2, machine).time.seconds)
    # bf16: gradients divided (8 bytes) and zeroed (4), a half of them updated (48, and 2 for the weights).
    due = TRAINED * (8 + 4 + 50 / 2) / H800.gpu.memory_bandwidth * 999
    assert seconds[1] - seconds[0] == pytest.approx(due, rel=1e-6)


def test_a_search_ranks_what_fits_and_takes_the_least_recomputation() -> None:
    run = large("qwen2vl_2b_stage2")
    found = Search(run, rows_of(run), H800).fitting(4)
    assert found and all(plan.fits for plan in found)
    assert [plan.time.seconds for plan in found] == sorted(plan.time.seconds for plan in found)
    roomy = Search(run, rows_of(run), machine_of("b200", 8, 50e9, 0.55)).fitting(4)
    cost = {"none": 0, "selective": 1, "full": 2}

    def recomputed(plans: list[StagePlan]) -> dict[tuple[int, int, int], int]:
        return {
            (p.run.parallel.tensor, p.run.parallel.pipeline, p.run.parallel.chunks): cost[
                p.run.parallel.recompute.vision
            ]
            + cost[p.run.parallel.recompute.language]
            for p in plans
        }

    tight = recomputed(found)
    assert all(again <= tight.get(layout, 9) for layout, again in recomputed(roomy).items())


def test_the_fewest_gpus_are_those_below_which_nothing_fits() -> None:
    run = large("qwen2vl_72b_stage1", rows=8)
    search = Search(run, rows_of(run), H800)
    least = search.fewest()
    assert least is not None and search.fitting(least)
    assert not any(search.fitting(gpus) for gpus in range(1, least))
    tiny = replace(H800, gpu=replace(H800.gpu, memory=4e9))
    assert Search(run, rows_of(run), tiny).fewest(most=16) is None


def test_jobs_are_of_whole_nodes() -> None:
    assert list(worlds(4, 300)) == [1, 2, 3, *range(4, 65, 4), 128, 256]


def test_a_family_is_its_three_stages() -> None:
    assert recipes_of("qwen2vl_2b") == [f"qwen2vl_2b_stage{n}" for n in (1, 2, 3)]
    assert recipes_of("quickstart_language") == ["quickstart_language"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "h9000"], "--gpu h9000 is not known; known are b200"),
        (["--efficiency", "1.5"], "--efficiency 1.5 is a share"),
        (["--efficiency", "1e-300"], "--efficiency 1e-300 is a share"),
        (["--network", "0"], "--network 0 is in GB/s"),
        (["--price", "-3"], "--price: '-3' is no number above 0"),
        (["--gpus", "4", "parallel.tensor=4", "data.rows_per_step=8"], "cannot be split over parallel.tensor=4"),
    ],
)
def test_a_wrong_question_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert end("plan", "--config-name", "qwen2vl_2b_stage2", *arguments) == 2
    assert said in capsys.readouterr().err


def test_axes_that_do_not_fill_the_gpus_are_told_with_a_layout_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpus", "3", "parallel.tensor=2", "data.rows_per_step=6"]
    assert end("plan", "--config-name", "qwen2vl_2b_stage2", *arguments) == 1
    told = capsys.readouterr().out
    assert "DOES NOT RUN on 3 H100: 3 processes cannot be shared" in told
    assert "what would: parallel.tensor=1 parallel.pipeline=1" in told


def test_json_has_what_the_lines_have(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpus", "8", "--gpu", "h200", "--price", "2", "--json", "data.rows_per_step=16"]
    code = end("plan", "--config-name", "qwen2vl_2b_stage3", *arguments)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["recipe"] == "qwen2vl_2b_stage3" and found["gpus"] == 8 and code == (not found["fits"])
    assert found["cost"] == pytest.approx(2 * found["gpu_hours"])
    assert found["memory"][0]["most"] <= found["memory_full_rows"][0]["most"]
