"""The table of docs/recipes.md is what the planner says now; `make prove-launch` makes every row of it."""

import pytest

from launch.planning.plan import recipes_of
from launch.recipe_table import PAGE, entries, row
from tests.launch.commands import end

QUICK = [("qwen2vl_2b_stage3", 64), ("qwen2vl_7b_stage1", 512), ("qwen2vl_72b_stage3_512", 512)]
"""Few microbatches a replica, so each is planned in a moment."""


@pytest.mark.parametrize(("name", "gpus"), QUICK)
def test_a_row_is_what_the_planner_says(name: str, gpus: int) -> None:
    assert (name, gpus) in list(entries())
    assert row(name, gpus) in PAGE.read_text().splitlines(), "run `python -m launch.recipe_table`"


def test_every_recipe_has_its_row() -> None:
    text = PAGE.read_text()
    assert [f"| `{name}` | {gpus} |" in text for name, gpus in entries()] == [True] * 27
    assert "DOES NOT FIT" not in text


def test_a_model_that_no_layout_of_so_few_gpus_holds_is_refused_with_the_fewest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The 72B on 8 takes longer to plan and is a row of the proof."""
    assert end("plan", "--config-name", "qwen2vl_7b_stage2", "--gpus", 1, "--gpu", "h800", "data.rows_per_step=8") == 1
    said = capsys.readouterr().out
    assert "qwen2vl_7b_stage2 DOES NOT RUN on 1 H800: 1 processes cannot be shared by parallel.tensor=1 x" in said
    assert "the leanest, tensor 1 x pipeline 1 with all recomputed, takes " in said
    assert " GB a rank, and 73.8 are to be had; 4 are the fewest that it fits, with parallel.tensor=" in said


def test_a_family_is_planned_by_its_recipes_for_that_many_gpus() -> None:
    assert recipes_of("qwen2vl_7b", 512) == ["qwen2vl_7b_stage1", "qwen2vl_7b_stage2_512", "qwen2vl_7b_stage3_512"]
    assert recipes_of("qwen2vl_7b", 8) == ["qwen2vl_7b_stage1", "qwen2vl_7b_stage2", "qwen2vl_7b_stage3"]
    assert recipes_of("qwen2vl_7b_stage2", 512) == ["qwen2vl_7b_stage2"]
