"""Every file in recipes/ loads, is short, and stands in the table."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from train.resolve import RECIPES, RecipeError, compose

RUNS = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "base")
FILES = sorted(RECIPES.rglob("*.yaml"))
QWEN2VL = {"qwen2vl_2b": 2_208_985_600, "qwen2vl_7b": 8_291_375_616, "qwen2vl_72b": 73_405_560_320}


PAGE = RECIPES.parent / "docs" / "recipes.md"
LAYOUT = re.compile(r"^\| `(\w+)` \| (\d+) \| ((\d+) x (\d+) x (\d+)|none fits.*?) \|", re.MULTILINE)
TABLE = LAYOUT.findall(PAGE.read_text())
"""Recipe, GPUs, layout, and its axes where there is one."""


def test_there_are_recipes() -> None:
    assert len(RUNS) >= 13
    assert len(TABLE) == 3 * 3 * 3


@pytest.mark.parametrize("name", RUNS)
def test_recipe_loads(name: str) -> None:
    run = compose(name)
    assert name == "first_run" or re.sub(r"_\d+$", "", name).endswith(run.stage.name)
    size = run.parallel.tensor * run.parallel.pipeline
    assert compose(name, world_size=size) == run


@pytest.mark.parametrize(("name", "gpus", "layout", "tensor", "pipeline", "data"), TABLE)
def test_recipe_has_the_layout_of_its_row(
    name: str, gpus: str, layout: str, tensor: str, pipeline: str, data: str
) -> None:
    if layout.startswith("none"):
        with pytest.raises(RecipeError, match="processes cannot be shared"):
            compose(name, world_size=int(gpus))
        return
    parallel = compose(name, world_size=int(gpus)).parallel
    assert (parallel.tensor, parallel.pipeline, parallel.data_size(int(gpus))) == (
        int(tensor),
        int(pipeline),
        int(data),
    )


@pytest.mark.parametrize("name", [name for name in RUNS if re.search(r"_\d+$", name)])
def test_the_number_of_gpus_changes_nothing_that_is_learnt(name: str) -> None:
    other = compose(re.sub(r"_\d+$", "", name))
    assert replace(compose(name), parallel=other.parallel, checkpoint=other.checkpoint) == other


def test_a_recipe_that_is_not_there_names_what_is_meant() -> None:
    with pytest.raises(RecipeError, match=r"plan --config-name qwen2vl_72b_stage2 --gpus 8` says whether it fits"):
        compose("qwen2vl_72b_stage2_8")
    with pytest.raises(RecipeError, match="did you mean qwen2vl_7b_stage2"):
        compose("qwen2_vl_7b_stage2")


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("quickstart")])
@pytest.mark.parametrize(
    ("layout", "processes"), [("single", 1), ("single", 2), ("tp2", 2), ("pp2", 2), ("tp2_pp2", 4)]
)
def test_quickstart_takes_any_small_layout(name: str, layout: str, processes: int) -> None:
    compose(name, [f"parallel={layout}"], world_size=processes)


def test_the_tables_list_exactly_the_recipes() -> None:
    named = set(re.findall(r"^\| `(first_run|quickstart_\w+|qwen2vl_2b_parts_\w+)` \|", PAGE.read_text(), re.MULTILINE))
    assert sorted(named | {row[0] for row in TABLE}) == RUNS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_recipe_files_are_short_and_say_what_they_are(path: Path) -> None:
    lines = path.read_text(encoding="ascii").splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith("# ")


@pytest.mark.parametrize("folder", [path for path in RECIPES.iterdir() if path.is_dir()], ids=lambda path: path.name)
def test_every_group_file_is_reachable(folder: Path) -> None:
    used = "\n".join(path.read_text() for path in FILES) + (RECIPES.parent / "tests/test_recipes.py").read_text()
    for path in folder.glob("*.yaml"):
        assert f"{folder.name}: {path.stem}\n" in used or f"- {path.stem}\n" in used or f'"{path.stem}"' in used


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
@pytest.mark.parametrize("size", QWEN2VL)
def test_published_sizes_have_the_published_number_of_parameters(size: str, stage: str) -> None:
    model = compose(f"{size}_{stage}").model
    language, vision = model.language, model.vision
    assert vision is not None
    hidden, key_value = language.hidden_size, language.num_kv_heads * language.head_dim
    attention = 2 * hidden * hidden + 2 * hidden * key_value + hidden + 2 * key_value
    layer = attention + 3 * hidden * language.ffn_size + 2 * hidden
    embeddings = language.vocab_size * hidden * (1 if language.tie_embeddings else 2)
    width = vision.embed_dim
    block = 4 * width * width + 4 * width + 2 * width * vision.ffn_size + vision.ffn_size + width + 4 * width
    tower = vision.depth * block + vision.patch_dim * width
    merged = vision.merged_dim
    merger = 2 * width + merged * merged + merged + merged * hidden + hidden
    assert language.num_layers * layer + hidden + embeddings + tower + merger == QWEN2VL[size]


@pytest.mark.parametrize("size", QWEN2VL)
def test_each_stage_starts_from_the_one_before(size: str) -> None:
    runs = [compose(f"{size}_stage{number}") for number in (1, 2, 3)]
    assert runs[0].init.from_hf is not None
    assert runs[1].init.from_run == runs[0].run_dir
    assert runs[2].init.from_run == runs[1].run_dir
    assert [run.stage.trainable for run in runs] == [
        ("vision", "merger"),
        ("vision", "merger", "language"),
        ("merger", "language"),
    ]
