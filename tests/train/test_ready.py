"""What a run needs on disk, and what is said when it is not there."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.plan.plan import Cursor
from model.canonical import Box
from parallel.config import ParallelConfig
from tests.harness.commits import save_commit
from tests.harness.part_folders import make_clip, make_qwen2, qwen2_vl_folder
from tests.harness.runs import make_data, write_recipe
from train.checkpoint.commits import Attempt, attempts
from train.config import InitConfig, RunConfig
from train.ready import file_faults, open_data
from train.resolve import compose, to_yaml


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("ready")
    recipe = write_recipe(folder / "recipe", make_data(folder / "data"), "stage2", ParallelConfig(), processes=1)
    return replace(compose(recipe.name, folder=recipe.folder), run_dir=str(folder / "run"))


def save(run_dir: Path, plan: object, recipe: str = "") -> None:
    boxes = {"w": Box(name="w", global_shape=(2,), offset=(0,), shape=(2,))}
    save_commit(
        run_dir, 3, {"w": torch.zeros(2)}, boxes, None, {"plan": plan, "cursor": Cursor().to_dict()}, recipe, keep=9
    )


def text(attempt: Attempt) -> str:
    return (attempt.path / "state.json").read_text()


def test_a_run_that_has_all_it_needs_is_not_refused(run: RunConfig) -> None:
    assert file_faults(run) == []


def test_everything_that_is_missing_is_told_at_once(run: RunConfig, tmp_path: Path) -> None:
    save(tmp_path / "held", {})
    wrong = replace(
        run,
        run_dir=str(tmp_path / "held"),
        data=replace(run.data, tokenizer=str(tmp_path)),
        init=InitConfig(from_run=str(tmp_path / "no")),
    )
    held, tokenizer, weights = file_faults(wrong)
    assert "already holds 1 checkpoint(s)" in held and "triptych resume" in held
    assert "no tokenizer.json" in tokenizer
    assert f"{tmp_path / 'no'} has no finished checkpoint" in weights


def test_tokenizer_and_sources_are_told_together_and_once(run: RunConfig, tmp_path: Path) -> None:
    (one,) = run.data.sources
    sources = (replace(one, name="a", path=str(tmp_path / "a")), one, replace(one, name="b", path=str(tmp_path / "b")))
    data = replace(run.data, tokenizer=str(tmp_path), sources=sources)
    evaluate = replace(run.evaluate, every_steps=2, sources=(one,))
    tokenizer, *missing = file_faults(replace(run, data=data, evaluate=evaluate))
    assert "no tokenizer.json" in tokenizer
    assert [fault.partition(":")[0] for fault in missing] == [f"source '{x}' at {tmp_path / x}" for x in "ab"]
    with pytest.raises(ValueError, match=r"no tokenizer.json in .*; source 'a' at .*; source 'b' at "):
        open_data(replace(run, data=data))


def test_a_vocabulary_and_budgets_that_are_too_small_are_told_with_numbers(run: RunConfig) -> None:
    small = replace(run, model=replace(run.model, language=replace(run.model.language, vocab_size=10)))
    assert "the model has 10 embeddings" in file_faults(small)[0]
    narrow = file_faults(replace(run, data=replace(run.data, patches_per_row=8)))[0]
    assert "a row takes 160 and 8" in narrow and "raise data.patches_per_row to" in narrow
    assert "data.tokens_per_row to" not in narrow


def test_pictures_are_refused_for_a_model_without_vision(run: RunConfig) -> None:
    with pytest.raises(ValueError, match="no vision tower, but these sources hold pictures or clips: mixed"):
        open_data(replace(run, model=replace(run.model, vision=None)))


def test_going_on_needs_a_checkpoint_with_the_same_data(run: RunConfig, tmp_path: Path) -> None:
    again = replace(run, run_dir=str(tmp_path), resume=True)
    assert "no finished checkpoint" in file_faults(again)[0]
    plan = open_data(run)[2]
    save(tmp_path, plan.identity)
    assert file_faults(again) == []
    assert "window was 16 and is 17" in file_faults(replace(again, data=replace(run.data, window=17)))[0]
    save(tmp_path, plan.identity)
    state = attempts(tmp_path)[0].path / "state.json"
    state.write_text(state.read_text()[:20])
    assert file_faults(again) == [], "the one before is sound, and gone on from"


def test_a_newest_checkpoint_that_began_a_segment_is_no_reason_to_stop(
    run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be damaged, which shows when all of it is read; ranks do that, and refuse if it is whole."""
    again = replace(run, run_dir=str(tmp_path), resume=True)
    save(tmp_path, open_data(run)[2].identity)
    save(tmp_path, open_data(replace(run, data=replace(run.data, window=17)))[2].identity)
    before, newest = sorted(attempts(tmp_path), key=lambda attempt: json.loads(text(attempt))["plan"]["window"])
    assert attempts(tmp_path)[0] == newest
    assert file_faults(again) == []
    told = f"the data is that of {before.path.name}, so the run goes on if {newest.path.name} is damaged"
    assert told in capsys.readouterr().err
    assert "window was 17 and is 18" in file_faults(replace(again, data=replace(run.data, window=18)))[0]


def test_first_weights_of_another_model_are_told_by_their_sizes(run: RunConfig, tmp_path: Path) -> None:
    save(tmp_path / "whole", {}, to_yaml(run))
    language = replace(run.model.language, ffn_size=run.model.language.ffn_size * 2)
    starts = replace(run, init=InitConfig(from_run=str(tmp_path / "whole")))
    assert file_faults(starts) == []
    told = file_faults(replace(starts, model=replace(run.model, language=language)))[0]
    assert f"model.language.ffn_size is {run.model.language.ffn_size} there and {language.ffn_size} here" in told

    stage = replace(run.stage, trainable=("language",), learning_rates={"language": 1e-3})
    save(tmp_path / "text", {}, to_yaml(replace(run, model=replace(run.model, vision=None), stage=stage)))
    starts = replace(run, init=InitConfig(from_run=str(tmp_path / "text")))
    assert "has no vision, merger; set init.fresh=[vision,merger]" in file_faults(starts)[0]
    assert file_faults(replace(starts, init=replace(starts.init, fresh=("vision", "merger")))) == []


def test_parts_that_do_not_fit_are_told_before_any_process_starts(run: RunConfig, tmp_path: Path) -> None:
    """Each folder's fault stands by itself: configs and headers are read, no tensor is."""
    make_clip(tmp_path / "clip", num_hidden_layers=3)
    make_qwen2(tmp_path / "qwen", replace(run.model.language, vocab_size=301))
    init = InitConfig(language=str(tmp_path / "qwen"), vision=str(tmp_path / "clip"))
    vision, language = file_faults(replace(run, init=init))
    assert "num_hidden_layers is 3 there and model.vision.depth is 2 here" in vision
    assert f"has 301 embeddings and model.language.vocab_size is {run.model.language.vocab_size}" in language
    make_clip(tmp_path / "clip", "whole")
    make_qwen2(tmp_path / "qwen", run.model.language)
    assert file_faults(replace(run, init=init)) == []
    save_file({"encoder.layers.0.mlp.fc1.weight": torch.zeros(2)}, tmp_path / "clip" / "model.safetensors")
    (missing,) = file_faults(replace(run, init=init))
    assert "missing embeddings.patch_embedding.weight (64, 3, 14, 14)" in missing


def test_a_whole_folder_is_held_to_its_tensors_and_to_the_tokenizer(run: RunConfig, tmp_path: Path) -> None:
    qwen2_vl_folder(tmp_path, run.model)
    for init in (InitConfig(from_hf=str(tmp_path)), InitConfig(language=str(tmp_path))):
        told = file_faults(replace(run, init=init))
        assert len(told) == 1 and "image" in told[0], told  # the folder's ids are not this tokenizer's
        save(tmp_path / "run", open_data(run)[2].identity)
        assert file_faults(replace(run, init=init, resume=True, run_dir=str(tmp_path / "run"))) == []
    assert file_faults(replace(run, init=InitConfig(from_hf=str(tmp_path), fresh=("language",)))) == []
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if name.endswith("merger.ln_q.bias"))]
    save_file(tensors, file)
    told = file_faults(replace(run, init=InitConfig(from_hf=str(tmp_path), fresh=("language",))))
    assert "missing visual.merger.ln_q.bias (64,)" in told[0]
