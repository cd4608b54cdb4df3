"""`triptych report`: what the page of a run says, and that nothing of the run's folder is alive in it."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from launch.pages.charts import Marks, buckets, draw, nice_ticks, short, smooth
from launch.pages.health import findings, worst
from launch.pages.look import visible
from launch.pages.report import report_at_end, write_run_report
from launch.pages.run_view import view
from launch.pages.story import read_story
from tests.harness.browser import INSTALL, find_browser
from tests.harness.html_page import HOSTILE
from tests.harness.report_page import read_report
from tests.harness.told_runs import write_run
from tests.launch.commands import end

EVIL = "".join(HOSTILE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "mine")


def said(run: Path) -> dict[str, tuple[str, str]]:
    """State and words of each finding."""
    return {finding.what: (finding.state, finding.said) for finding in findings(read_story(run))}


def changed(run: Path, **values: object) -> None:
    """Put values into the last tenth of the steps."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[-len(rows) // 10 :]:
        row |= values
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_command_writes_a_page_with_all_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end("report", run) == 0
    assert f"wrote {run / 'report.html'}" in capsys.readouterr().out
    page = read_report((run / "report.html").read_text("utf-8"))
    assert page.foreign == [] and page.title == "mine" and page.charts == 11 and page.pictures == 4
    for words in (
        "healthy",
        "dp8-tp4-pp2",
        "64 x NVIDIA H200",
        "captions",
        "documents",
        "clips",
        "step_00000150.0a1b2c3d",
    ):
        assert words in page.text, words
    assert "picture cannot be decoded: truncated" in page.text and "loss is nan" in page.text
    assert end("report", run.parent) == 2 and "no metrics.jsonl" in capsys.readouterr().err


def test_nothing_of_a_hostile_folder_is_alive(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 40, sources=(f"a{EVIL}", "b"), words=EVIL)
    with (run / "evaluations.jsonl").open("a") as file:
        sample = {"source": "b", "sample": "b:1", "pictures": ['x" onerror="alive', "javascript:alive", 7]}
        file.write(json.dumps({"step": 41, "losses": {EVIL: 1.0}, "samples": [sample]}) + "\n")
    page = read_report(write_run_report(run).read_text("utf-8"))
    assert page.foreign == []
    for text in HOSTILE:
        assert visible(text) in page.text, text
    assert page.pictures == 0


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "saves.jsonl", "starts.jsonl", "evaluations.jsonl", "skipped.jsonl", "quarantine_0.jsonl"]
)
def test_a_file_of_any_rubbish_is_a_page_all_the_same(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 8)
    values = [None, True, -1, 1e400, "x", [], {}, [{}], {"a": {"b": []}}, "9" * 5000]
    keys = {key for line in (run / name).read_text().splitlines() for key in json.loads(line)}
    rows = [json.dumps(dict.fromkeys(keys, value)) for value in values]
    rows += [json.dumps({"step": 3, key: value}) for key in sorted(keys) for value in values]
    rubbish = "\n".join([*rows, "[1]", "nul", "[" * 100_000, '{"step": 1, "lo']) + "\n"
    with (run / name).open("a") as file:
        file.write(rubbish)
    (run / "verdict.json").write_text("[]")
    page = read_report(write_run_report(run).read_text("utf-8"))
    assert page.foreign == [] and "could not be read" in page.text


def test_a_run_of_one_step_and_one_without_anything_have_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "step_seconds": 1.0}\n')
    assert read_report(write_run_report(tmp_path).read_text("utf-8")).charts >= 1
    (tmp_path / "metrics.jsonl").write_text("")
    assert "no step has one" in read_report(write_run_report(tmp_path).read_text("utf-8")).text


def test_a_step_that_was_done_again_counts_once(tmp_path: Path) -> None:
    row = {"step": 1, "loss": 4.0, "sources": {"a": {"loss": 4.0, "samples": 3, "tokens": 30, "targets": 9}}}
    again = {"step": 1, "loss": 2.0, "sources": {"a": {"loss": 2.0, "samples": 5, "tokens": 50, "targets": 9}}}
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(again)}\n")
    story = read_story(tmp_path)
    assert story.column("loss").tolist() == [2.0] and story.sources["a"] == {"samples": 5, "tokens": 50, "targets": 9}


def test_a_healthy_run_is_called_so(run: Path) -> None:
    found = findings(read_story(run))
    assert worst(found) in ("good", "look") and {finding.what for finding in found if finding.state != "good"} <= {
        "Gradients"
    }
    assert said(run)["Bubble"] == ("good", "12 % of forward and backward waited for other pipeline stages")


@pytest.mark.parametrize(
    ("what", "state", "values"),
    [
        ("Loss", "bad", {"loss": 3.0}),
        ("Gradients", "bad", {"grad_norm": 50.0}),
        ("Speed", "bad", {"tokens_per_second": 100.0}),
        ("Data wait", "look", {"data_seconds": 0.5}),
        ("Bubble", "look", {"bubble": 2.0}),
        ("Visual load", "look", {"visual_load_spread": 4.0}),
        ("Samples", "bad", {"bad_samples": 9000}),
    ],
)
def test_what_is_wrong_is_found(what: str, state: str, values: dict[str, float], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert said(run)[what][0] != state
    changed(run, **values)
    assert said(run)[what][0] == state, said(run)


def test_a_run_that_stood_still_is_a_page_all_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row | {"tokens_per_second": 0.0}) + "\n" for row in rows))
    assert said(run)["Speed"][1].startswith("0 tokens/s")


def test_a_run_that_went_silent_without_a_verdict_is_not_called_one_that_trains(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "verdict.json").unlink()
    changed(run, time=time.time())
    assert said(run)["End"] == ("good", "no verdict yet: the run trains")
    changed(run, time=time.time() - 30 * 86400)
    assert said(run)["End"] == ("look", "no verdict, and no step for 720 hours: it was killed, or its host was lost")


def test_a_folder_is_no_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end("report", str(run), "--out", str(run)) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err


def test_a_failed_save_and_a_failed_run_are_bad(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "saves.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 600, "checkpoint": "x", "fault": "No space left on device", "save_bytes": 0}) + "\n"
        )
    verdict = json.loads((run / "verdict.json").read_text())
    (run / "verdict.json").write_text(json.dumps(verdict | {"verdict": "failed", "reason": "rank 3: loss is nan"}))
    assert said(run)["Checkpoints"][0] == said(run)["End"][0] == "bad"
    assert "No space left" in said(run)["Checkpoints"][1] and "rank 3" in said(run)["End"][1]


def test_answers_of_the_first_and_the_latest_evaluations_stand_side_by_side(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 8)
    (line,) = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()][:1]
    told = [line | {"step": step, "samples": [line["samples"][0] | {"answer": f"at {step}"}]} for step in (2, 4, 6, 8)]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    examples = view(read_story(run), "run").examples
    assert examples is not None and list(examples.states) == ["step 2", "step 6", "step 8"]
    ((row,),) = examples.rows.values()
    assert [answer.said for answer in row.answers] == ["at 2", "at 6", "at 8"]


def test_the_launcher_writes_it_where_the_first_rank_ran_and_a_fault_is_only_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path / "run", 8)
    monkeypatch.setattr("launch.pages.report.platform.node", lambda: "node18")
    report_at_end(run)
    assert not (run / "report.html").exists()
    monkeypatch.setattr("launch.pages.report.platform.node", lambda: "node17")
    report_at_end(run)
    assert (run / "report.html").exists()
    report_at_end(tmp_path / "nowhere")
    assert "no page of" in caplog.text


def test_a_browser_finds_the_same(tmp_path: Path) -> None:
    browser = find_browser(tmp_path)
    if browser is None:
        pytest.skip(f"no chromium here: {INSTALL}")
    out = write_run_report(write_run(tmp_path / "run", 40, sources=(f"a{EVIL}", "b"), words=EVIL))
    seen, written = read_report(browser.dom(out)), read_report(out.read_text("utf-8"))
    assert seen.foreign == [] and seen.title == written.title and seen.charts == written.charts
    assert re.sub(r"\s+", "", seen.text) == re.sub(r"\s+", "", written.text)


def test_many_steps_are_few_points_and_read_in_seconds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 3000)
    started = time.process_time()
    page = write_run_report(run).read_text("utf-8")
    assert len(page) < 600_000 and time.process_time() - started < 30


def test_buckets_keep_every_extreme() -> None:
    values = np.zeros(10_000)
    values[1234], values[777] = 9.0, -3.0
    values[5000] = np.nan
    at, mean, least, most = buckets(np.arange(1.0, 10_001), values)
    assert len(at) == len(mean) < 300 and (least.min(), most.max()) == (-3.0, 9.0) and np.isfinite(mean).all()


def test_a_smooth_line_goes_through_a_straight_one_and_over_gaps() -> None:
    straight = np.arange(200.0)
    assert np.allclose(smooth(straight), straight)
    straight[50] = np.nan
    assert np.isfinite(smooth(straight)).all()


def test_a_value_far_off_does_not_flatten_the_rest_and_is_marked() -> None:
    values = np.ones(500)
    values[250] = 1000.0
    svg = str(draw(np.arange(500.0), {"x": values}, Marks(saves=[100], skipped=[250], starts=[0, 300]), band=True))
    assert svg.count('class="far') == 1 and svg.count('class="save"') == svg.count('class="skip"') == 1
    assert svg.count('class="start"') == 1  # the first start is where the axis begins
    assert "1k" not in svg and "no values" in draw(np.arange(3.0), {"x": np.full(3, np.nan)}, Marks())


def test_ticks_are_round_numbers_and_numbers_are_short() -> None:
    assert nice_ticks(0.0, 1.0) == pytest.approx([0.0, 0.5, 1.0]) and nice_ticks(3.0, 47.0) == [20.0, 40.0]
    assert [short(value) for value in (0.0, 0.5, 12.0, 15_930.0, 2.2e9, 0.00005)] == [
        "0",
        "0.5",
        "12",
        "15.9k",
        "2.2G",
        "5.0e-05",
    ]
    assert [short(value, "%") for value in (0.0046, 0.12, float("nan"))] == ["0.46 %", "12 %", "-"]
