"""The driver's own work: layout, logs, curves, held-out questions, and the page that shows them."""

import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.types import RawSample
from launch.answering.questions import caption_prompts, grey_prompt, prompt_text
from launch.answering.score import Heldout, Score, constant_shares, read_heldout
from launch.pages.report import write_quickstart_report
from launch.pages.result import STATES, read_curve, task_table
from launch.quickstart import OUT, STAGES, QuickstartError, clean, make_plan, run_logged
from tests.data.conftest import IMAGE, VIDEO, clip_bytes, picture_bytes, train_tokenizer
from tests.harness.report_page import read_report
from tests.harness.told_runs import write_run
from train.resolve import RecipeError


@pytest.mark.parametrize(
    ("overrides", "gpus", "processes", "layout"),
    [
        ([], 0, 2, "dp2-tp1-pp1"),
        ([], 1, 1, "dp1-tp1-pp1"),
        ([], 8, 2, "dp2-tp1-pp1"),
        (["parallel=tp2"], 0, 2, "dp1-tp2-pp1"),
        (["parallel=tp2_pp2"], 0, 4, "dp1-tp2-pp2"),
        (["parallel.pipeline=3"], 0, 3, "dp1-tp1-pp3"),
    ],
)
def test_the_layout_follows_machine_and_overrides(overrides: list[str], gpus: int, processes: int, layout: str) -> None:
    plan = make_plan(overrides, gpus=gpus)
    assert (plan.processes, plan.layout) == (processes, layout)


def test_one_gpu_means_one_process_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    make_plan([], gpus=1)
    assert "one GPU: 1 process" in capsys.readouterr().out


@pytest.mark.parametrize(("overrides", "processes"), [(["parallel=tp2"], None), ([], 2)])
def test_processes_cannot_share_a_gpu(overrides: list[str], processes: int | None) -> None:
    with pytest.raises(RecipeError, match="2 processes for 1 GPU"):
        make_plan(overrides, processes, gpus=1)


def test_a_bad_override_is_refused_before_anything_is_made() -> None:
    with pytest.raises(RecipeError, match=r"stage\.stepz"):
        make_plan(["stage.stepz=1"], gpus=0)


def test_stages_start_from_each_other_below_the_output_folder() -> None:
    runs = make_plan([], gpus=0).runs
    for before, after in itertools.pairwise(STAGES):
        assert runs[after].init.from_run == runs[before].run_dir == str(OUT / before)


def test_what_a_command_says_is_kept_and_its_steps_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", "print('stage1 step 1'); print('a warning')"]
    run_logged(command, tmp_path / "log.txt", "stage 1", show="stage1")
    assert (tmp_path / "log.txt").read_text() == "stage1 step 1\na warning\n"
    assert capsys.readouterr().out == "stage1 step 1\n"


def test_a_failing_command_ends_with_the_end_of_its_log(tmp_path: Path) -> None:
    code = "import sys; print('\\n'.join(f'line {i}.' for i in range(99))); sys.exit('the reason')"
    with pytest.raises(QuickstartError) as caught:
        run_logged([sys.executable, "-c", code], tmp_path / "log.txt", "stage 1", show="none")
    told = str(caught.value)
    assert "stage 1 ended with status 1" in told and "the reason" in told and "line 98." in told
    assert "line 3." not in told


def test_clean_removes_runs_and_keeps_data(tmp_path: Path) -> None:
    for name in (*STAGES, "export", "data", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "result.json").touch()
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]
    clean(tmp_path)


def test_a_curve_has_each_step_once(tmp_path: Path) -> None:
    rows = [(1, 4.0), (2, 3.0), (3, None), (2, 2.5), (4, 2.0)]
    lines = [json.dumps({"step": s, "loss": x, "step_tokens": 10, "step_seconds": 0.5}) for s, x in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    summary = read_curve(tmp_path).summary()
    assert summary == {"steps": 4, "first_loss": 4.0, "last_loss": 2.0, "tokens_per_second": 20.0}


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Heldout, Path]:
    folder = tmp_path_factory.mktemp("heldout")
    tokenizer = load_tokenizer(train_tokenizer(folder / "tokenizer"))
    picture = [{"type": "image", "media": 0}]
    evil = "<script>alert(1)</script>"
    sources = {
        "digits": [
            RawSample(
                key=f"d{n}",
                content={
                    "source": "digits",
                    "messages": [
                        {"role": "user", "content": [*picture, {"type": "text", "text": f"What is {evil}?"}]},
                        {"role": "assistant", "content": str(n % 2)},
                    ],
                    "eval": {"task": "digits", "answer": str(n % 2), "metric": "exact"},
                },
                media={0: ("png", picture_bytes(40, 40 + 28 * (n % 3), n))},
            )
            for n in range(7)
        ],
        "clips": [
            RawSample(
                key="c0",
                content={
                    "source": "clips",
                    "parts": [
                        {"type": "video", "media": 0},
                        {"type": "text", "text": "left?", "prefix": True},
                        {"type": "text", "text": "right"},
                    ],
                    "eval": {"task": "clips", "answer": "right", "metric": "exact"},
                },
                media={0: ("mp4", clip_bytes())},
            )
        ],
        "document_captions": [
            RawSample(
                key=f"p{n}",
                content={"source": "captions", "parts": [*picture, {"type": "text", "text": f"digit {n}"}]},
                media={0: ("png", picture_bytes(40, 40 + 28 * n, n))},
            )
            for n in range(4)
        ],
    }
    for name, samples in sources.items():
        write_shards(folder / name, name, samples, 100)
        build_index(folder / name, tokenizer)
    data = DataConfig(
        tokenizer=str(folder / "tokenizer"),
        sources=make_plan([], gpus=0).runs["stage3"].data.sources,
        tokens_per_row=512,
        patches_per_row=512,
        rows_per_step=1,
        window=8,
        seed=0,
        image=IMAGE,
        video=VIDEO,
    )
    return read_heldout(folder, data), folder


def test_a_question_ends_where_its_answer_begins(heldout: tuple[Heldout, Path]) -> None:
    read, _ = heldout
    assert {task: len(asked) for task, asked in read.questions.items()} == {"clips": 1, "digits": 7}
    for question in read.questions["digits"]:
        text = read.tokenizer.decode(question.prompt.encoded.tokens.tolist())
        assert text.endswith("<|im_start|>assistant\n")
        assert question.prompt.kinds == ("image",)
    clip = read.questions["clips"][0]
    assert clip.text == "[video] left?"
    assert read.tokenizer.decode(clip.prompt.encoded.tokens.tolist()).endswith("left?")


def test_grey_hides_all_and_changes_no_size(heldout: tuple[Heldout, Path]) -> None:
    read, _ = heldout
    prompt = read.questions["digits"][0].prompt
    grey = grey_prompt(prompt, read.data)
    assert grey.patches.shape == prompt.patches.shape
    assert len(np.unique(grey.patches)) == 3  # one value a colour
    assert np.abs(grey.patches).max() < 0.5  # the middle of the range
    assert prompt.encoded is grey.encoded


def test_shuffled_captions_keep_text_and_change_pictures(heldout: tuple[Heldout, Path]) -> None:
    read, folder = heldout
    right, shuffled = caption_prompts(folder / "document_captions", read.data, read.tokenizer)
    for place, (own, other) in enumerate(zip(right, shuffled, strict=True)):
        wanted = own.encoded.targets[own.encoded.targets >= 0]
        assert np.array_equal(wanted, other.encoded.targets[other.encoded.targets >= 0])
        assert np.array_equal(other.patches, right[(place + 2) % 4].patches)
        assert not np.array_equal(own.patches, other.patches)


def test_the_page_and_the_table_say_what_was_answered(heldout: tuple[Heldout, Path], tmp_path: Path) -> None:
    read, folder = heldout
    answers = {"clips": ["right"], "digits": ["0", "0", "0", "0", "<b>", "0", "0"]}
    score = Score(answers=answers, shares={"clips": 1.0, "digits": 3 / 7}, seconds=1.0, losses={"right": 1.0})
    scores = dict.fromkeys(STATES, score)
    tasks = task_table(scores, {"clips": 0.0, "digits": 1.0}, constant_shares(read))
    assert tasks["digits"]["chance"] == 1.0 and tasks["digits"]["constant"] == pytest.approx(4 / 7)
    assert tasks["clips"] == dict.fromkeys(STATES, 1.0) | {"samples": 1, "chance": 1.0, "constant": 1.0, "grey": 0.0}
    runs = {stage: write_run(tmp_path / stage, 8) for stage in ("stage1", "stage2")}
    result = {
        "seconds": 5.0,
        "layout": "dp1-tp1-pp1",
        "processes": 1,
        "overrides": [],
        "tasks": tasks,
        "caption_loss": {"right": 1.0, "shuffled": 2.0},
    }
    write_quickstart_report(tmp_path / "report.html", result, runs, scores, read, folder)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page must not need another file"
    assert page.count("data:image/png;base64,") == 6 + 3 + 2 * 4  # pictures, frames of the clip, those of the runs
    of_runs = 2 * 2 * 2
    assert page.count('class="right"') == 4 * (2 + 1) + of_runs and page.count('class="wrong"') == 4 * 4 + of_runs
    assert page.count('<section class="run">') == 2 and read_report(page).foreign == []


def test_held_out_samples_without_an_answer_are_refused(heldout: tuple[Heldout, Path], tmp_path: Path) -> None:
    read, _ = heldout
    with pytest.raises(ValueError, match="eval"):
        read_heldout(tmp_path, replace(read.data))


def test_a_question_in_words() -> None:
    messages = [
        {"role": "system", "content": "hidden"},
        {"role": "user", "content": [{"type": "image", "media": 0}, {"type": "text", "text": "one?"}]},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "2"},
    ]
    assert prompt_text({"messages": messages}) == "[image] one?\n1\ntwo?"
