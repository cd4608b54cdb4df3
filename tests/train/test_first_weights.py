"""Where a stage's first weights come from, what they are on every layout, and what is told and kept of it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.before import export_start
from launch.jobs.resume import plan_resume
from model.hf_read import open_hf
from model.part_folder import open_language
from parallel.config import ParallelConfig
from tests.harness.compare import assemble
from tests.harness.layouts import MODEL
from tests.harness.part_folders import (
    CLIP_MODEL,
    canonical_language,
    canonical_tower,
    make_clip,
    make_qwen2,
    qwen2_vl_folder,
    started,
)
from tests.harness.run_faults import well
from tests.harness.runs import VOCABULARY, make_data, model_config, read_recipe, write_recipe
from tests.prove.context import LAYOUTS, Worlds
from train.checkpoint.load import find_commit, read_tensors
from train.config import InitConfig
from train.first_weights import REPORT, collapse, lines
from train.ready import file_faults
from train.resolve import compose
from train.sources import part_sources, parts_by_source

UNTIED = replace(MODEL, language=replace(MODEL.language, tie_embeddings=False))


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (InitConfig(), ["drawn at random"] * 3),
        (InitConfig(from_run="r"), ["init.from_run=r"] * 3),
        (InitConfig(from_hf="h", fresh=("merger",)), ["init.from_hf=h", "drawn at random", "init.from_hf=h"]),
        (InitConfig(language="l", vision="v"), ["init.vision=v", "drawn at random", "init.language=l"]),
        (InitConfig(language="l"), ["drawn at random", "drawn at random", "init.language=l"]),
        (InitConfig(from_run="r", vision="v"), ["init.vision=v", "init.from_run=r", "init.from_run=r"]),
        (
            InitConfig(from_hf="h", language="l", fresh=("vision",)),
            ["drawn at random", "init.from_hf=h", "init.language=l"],
        ),
    ],
)
def test_every_part_has_one_source(init: InitConfig, expected: list[str]) -> None:
    run: Any = SimpleNamespace(init=init, model=MODEL)
    found = part_sources(run)
    assert [(part, str(source)) for part, source in found.items()] == list(zip(MODEL.parts, expected, strict=True))
    assert {part: source for source, parts in parts_by_source(run).items() for part in parts} == found


@pytest.mark.parametrize("layout", ["one process", "TP2", "PP2"])
def test_parts_are_bit_for_bit_those_of_their_folders(layout: str, worlds: Worlds, tmp_path: Path) -> None:
    expected = canonical_tower(make_clip(tmp_path / "clip", "whole")) | canonical_language(
        make_qwen2(tmp_path / "qwen")
    )
    init = InitConfig(language=str(tmp_path / "qwen"), vision=str(tmp_path / "clip"))
    size, parallel = LAYOUTS[layout]
    held, printed = zip(*worlds.run(size, started, parallel=parallel, run_dir=tmp_path / "run", init=init), strict=True)
    weights = assemble(list(held), {name: value.numpy() for name, value in expected.items()})
    assert len(weights) == len(expected) + 6
    for name, value in expected.items():
        assert torch.equal(torch.from_numpy(weights[name]), value), name
    assert (weights["merger.norm.weight"] == 1).all() and not weights["merger.fc1.bias"].any()
    assert abs(weights["merger.fc1.weight"].std() - 0.02) < 1e-3

    told = json.loads((tmp_path / "run" / REPORT).read_text())
    vision, merger, language = told["sources"]
    assert (vision["source"], vision["where"]) == ("vision", str(tmp_path / "clip"))
    assert vision["parts"] == {
        "vision": {"tensors": 25, "parameters": sum(v.numel() for v in expected.values()) - 143232}
    }
    assert (merger["source"], merger["where"], merger["parts"]["merger"]["tensors"]) == ("fresh", None, 6)
    assert language["parts"] == {"language": {"tensors": 30, "parameters": 143232}} and language["dropped"] == []
    stored = set(load_file(tmp_path / "clip" / "model.safetensors"))
    taken = {name for name in stored if "vision_model.encoder" in name or "patch_embedding" in name}
    assert set(vision["dropped"]) == stored - taken
    assert printed[0].splitlines() == list(lines(told)) and not any(printed[1:]), "rank 0 speaks for all"
    assert "text_model.encoder.layers.*.mlp.fc1.weight (3x)" in printed[0]
    assert "merger made new: 6 tensors" in printed[0]


def test_names_of_layers_are_told_together() -> None:
    names = ["a.layers.0.w", "b", "a.layers.11.w", "visual.blocks.3.norm1.bias", "a.layers.0.v"]
    assert collapse(names) == ["a.layers.*.w (2x)", "b", "visual.blocks.*.norm1.bias", "a.layers.*.v"]


def test_a_language_part_comes_out_of_a_qwen2_vl_folder_with_any_tower(tmp_path: Path) -> None:
    state = qwen2_vl_folder(tmp_path, MODEL)
    other = replace(MODEL, vision=replace(CLIP_MODEL.vision, depth=1, embed_dim=32))
    opened = open_language(tmp_path, other)
    assert all(name.startswith("visual.") for name in opened.dropped) and len(opened.dropped) == 31
    expected = canonical_language(state)
    assert set(opened.reader.names()) == set(expected)
    assert all(torch.equal(opened.reader.read(name), value) for name, value in expected.items())


def test_a_head_of_its_own_is_taken_where_the_model_has_one(tmp_path: Path) -> None:
    expected = canonical_language(make_qwen2(tmp_path, UNTIED.language), UNTIED.language)
    reader = open_language(tmp_path, UNTIED).reader
    assert torch.equal(reader.read("language.output_layer.weight"), expected["language.output_layer.weight"])


def test_a_language_folder_that_does_not_fit_is_refused_with_numbers_and_cure(tmp_path: Path) -> None:
    make_qwen2(tmp_path)
    longer = replace(MODEL, language=replace(MODEL.language, vocab_size=320))
    with pytest.raises(ValueError, match=r"has 301 embeddings and .* is 320; .* set model\.language\.vocab_size=301"):
        open_language(tmp_path, longer)
    with pytest.raises(ValueError, match=r"ties its head .*tie_embeddings is false; set it to true"):
        open_language(tmp_path, UNTIED)
    narrow = replace(MODEL, language=replace(MODEL.language, ffn_size=88))
    with pytest.raises(ValueError, match=r"model\.language\.ffn_size is 96 there and 88 here"):
        open_language(tmp_path, narrow)
    make_qwen2(tmp_path / "untied", UNTIED.language)
    with pytest.raises(ValueError, match=r"has a head of its own .*tie_embeddings is true; set it to false"):
        open_language(tmp_path / "untied", MODEL)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": torch.ones(301, 64)}, file)
    with pytest.raises(ValueError, match=r"lm_head\.weight is another tensor than model\.embed_tokens\.weight"):
        open_language(tmp_path, MODEL)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    assert open_language(tmp_path, MODEL).dropped == ("lm_head.weight",)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors | {"score.weight": torch.ones(2, 64)}, file)
    with pytest.raises(ValueError, match=r"missing model\.layers\.3\.mlp\.up_proj.*no place for score\.weight"):
        open_language(tmp_path, MODEL)


def test_a_run_from_parts_is_told_once_and_goes_on(tmp_path: Path, worlds: Worlds) -> None:
    """On two processes: stage 1 from parts, stopped, resumed, then a second stage from it."""
    make_clip(tmp_path / "clip")
    make_qwen2(tmp_path / "qwen", replace(MODEL.language, vocab_size=VOCABULARY))
    recipe = write_recipe(tmp_path / "recipe", make_data(tmp_path / "data"), "stage1", ParallelConfig(tensor=2), 2)
    init = InitConfig(language=str(tmp_path / "qwen"), vision=str(tmp_path / "clip"))
    run = tmp_path / "run"
    told = replace(read_recipe(recipe), run_dir=str(run), init=init, stop_after_steps=2)
    assert file_faults(told) == []
    well(worlds.nursery.live(told, 2))
    file = run / REPORT
    written, text = file.stat().st_mtime_ns, file.read_text()
    vision = json.loads(text)["sources"][0]
    assert vision["differs"] == ["layer_norm_eps is 1e-05 there and 1e-06 here"]
    (tmp_path / "clip").rename(tmp_path / "gone")  # a run that goes on needs its folders no more
    (tmp_path / "qwen").rename(tmp_path / "qwen gone")
    again = plan_resume(run, processes=2).run
    assert file_faults(again) == []
    well(worlds.nursery.live(again, 2))
    assert (file.stat().st_mtime_ns, file.read_text()) == (written, text)

    # What stage 1 froze is still the folder's; the next stage says where it comes from.
    reader = read_tensors(find_commit(run).path)
    frozen = open_hf(tmp_path / "qwen gone", model_config(), ["language"])
    assert all(torch.equal(reader.read(name), frozen.read(name)) for name in frozen.names())
    init = InitConfig(from_run=str(run), fresh=("merger",))
    after = replace(told, run_dir=str(tmp_path / "next"), init=init, stop_after_steps=1)
    assert file_faults(after) == []
    well(worlds.nursery.live(after, 2))
    first, fresh = json.loads((tmp_path / "next" / REPORT).read_text())["sources"]
    assert (first["source"], first["where"]) == ("from_run", str(run)) and first["checkpoint"].startswith(
        "step_00000005"
    )
    assert list(first["parts"]) == ["vision", "language"] and list(fresh["parts"]) == ["merger"]
    assert first["dropped"] == [name for name in reader.names() if name.startswith("merger.")]


def test_weights_before_a_stage_from_parts_are_exported(tmp_path: Path) -> None:
    vision = make_clip(tmp_path / "clip")
    make_qwen2(tmp_path / "qwen", replace(MODEL.language, vocab_size=VOCABULARY))
    recipe = write_recipe(tmp_path / "recipe", make_data(tmp_path / "data", 4), "stage1", ParallelConfig(), 1)
    run = compose(recipe.name, folder=recipe.folder)
    run = replace(run, init=InitConfig(language=str(tmp_path / "qwen"), vision=str(tmp_path / "clip")))
    reader = open_hf(export_start(run, tmp_path / "start"), run.model)
    expected = canonical_tower(vision)
    assert all(torch.equal(reader.read(name), value) for name, value in expected.items())
    assert (reader.read("merger.norm.weight") == 1).all()
