"""docs/stages.md has the numbers of the recipes, and its example is one."""

import re
import shutil
from pathlib import Path

import pytest

from train.resolve import RECIPES, compose

PAGE = (RECIPES.parent / "docs" / "stages.md").read_text()
STAGES = ("stage1", "stage2", "stage3")


def _row(head: str) -> list[str]:
    (cells,) = re.findall(rf"^\| {head} \| (.*) \|$", PAGE, re.MULTILINE)
    return cells.split(" | ")


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("size", ["2b", "7b", "72b"])
def test_the_table_is_that_of_the_recipes(size: str, number: int) -> None:
    run = compose(f"qwen2vl_{size}_{STAGES[number]}")
    stage, tokens_per_step = run.stage, run.data.rows_per_step * run.data.tokens_per_row
    assert stage.tokens is not None
    assert re.findall(r"`(\w+)`", _row("learns here")[number]) == list(stage.trainable)
    assert _row("tokens here")[number].startswith(f"{stage.tokens // 10**9} billion")
    assert _row("rows of 16,384 tokens in a step")[number].startswith(f"{run.data.rows_per_step}")
    assert run.data.tokens_per_row == 16384
    assert _row("steps that makes")[number] == f"{stage.tokens / tokens_per_step:,.0f}"
    rates = _row("peak rates")[number]
    for part, rate in stage.learning_rates.items():
        assert re.search(rf"{part}[a-z ]* {rate:.0e}".replace("e-0", "e-"), rates), (part, rate, rates)
    assert "ours" in rates


@pytest.mark.parametrize("stage", STAGES)
def test_a_number_that_no_paper_has_is_marked_where_it_stands(stage: str) -> None:
    text = (RECIPES / "stage" / f"{stage}.yaml").read_text()
    for key in ("learning_rates", "warmup", "final_rate"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{key}:")]
        assert "# ours" in line
    assert "All ours" in (RECIPES / "data" / "large.yaml").read_text().splitlines()[0]


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n# recipes/(mine_stage1)\.yaml\n(.*?)```", PAGE, re.DOTALL)
    shutil.copytree(RECIPES, tmp_path / "recipes")
    (tmp_path / "recipes" / f"{example[0]}.yaml").write_text(example[1])
    run = compose(example[0], folder=tmp_path / "recipes", world_size=64)
    assert [source.name for source in run.data.sources] == ["captions", "ocr"]
    assert run.run_dir == "runs/mine/stage1"
