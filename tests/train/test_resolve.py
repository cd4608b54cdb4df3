"""From YAML to a typed run: what comes out, and what is refused in which words."""

import pytest
from omegaconf import OmegaConf

from train.config import RunConfig
from train.resolve import RecipeError, check_saved, compose, loosen, to_run_config, to_yaml

# Tuning a recipe is not to break these tests: the numbers they look for are set here.
PINNED = [
    "stage.steps=600",
    "data.rows_per_step=4",
    "data.tokens_per_row=400",
    "data.patches_per_row=560",
    "data.image.max_pixels=25088",
]

REFUSED = {
    "unknown key": (["stage.stepz=3"], ["stage.stepz", "stage.steps"]),
    "unknown key in a list": (
        ["data.sources=[{name: a, path: b, wieght: 2.0}]"],
        ["data.sources[0].wieght", "data.sources[0].weight"],
    ),
    "unknown key far from any": (["model.language.qqq=1"], ["model.language.qqq", "hidden_size"]),
    "missing key": (["~model.language.num_heads"], ["model.language.num_heads is missing", "int"]),
    "bool for int": (["stage.steps=true"], ["stage.steps needs int", "bool True"]),
    "float for int": (["stage.steps=1e3"], ["stage.steps needs int", "float 1000.0"]),
    "string for float": (["optimizer.clip_norm=big"], ["optimizer.clip_norm needs float", "str 'big'"]),
    "string for int or null": (["checkpoint.every_steps=often"], ["checkpoint.every_steps needs int", "str 'often'"]),
    "null where required": (["run_dir=null"], ["run_dir needs str", "null"]),
    "value for a group": (["optimizer=adam"], ["optimizer must be a group of keys", "str 'adam'"]),
    "wrong length": (["optimizer.betas=[0.9]"], ["optimizer.betas needs a list of 2 x float", "[0.9]"]),
    "wrong item": (["parallel.split=[1,x]"], ["parallel.split[1] needs int", "str 'x'"]),
    "wrong choice": (["precision=fp16"], ["precision needs one of fp32, bf16", "'fp16'"]),
    "value left open": (["run_dir=???"], ["run_dir"]),
    "unknown group file": (["model=small"], ["model/small", "tiny"]),
    "heads": (["parallel.tensor=3"], ["model.language.num_heads=4", "parallel.tensor=3", "1 or 2"]),
    "kv heads": (["parallel.tensor=4"], ["model.language.num_kv_heads=2", "parallel.tensor=4", "1 or 2"]),
    "ffn": (["parallel.tensor=2", "model.language.ffn_size=511"], ["ffn_size=511", "parallel.tensor=2"]),
    "vision heads": (
        ["parallel.tensor=2", "model.vision.num_heads=1"],
        ["model.vision.num_heads=1", "parallel.tensor=2"],
    ),
    "too many stages": (["parallel.pipeline=5"], ["parallel.pipeline=5", "4 language layers", "4 pieces or fewer"]),
    "split of another length": (["parallel.split=[2,2]"], ["lists 2 pieces", "parallel.pipeline is 1"]),
    "split of another sum": (
        ["parallel.pipeline=2", "parallel.split=[2,3]"],
        ["places 5 layers", "has 4", "add up to 4"],
    ),
    "split by another word": (
        ["parallel.split=even"],
        ["parallel.split needs a list of int or one of auto or null", "'even'"],
    ),
    "chunks of one pipeline stage": (["parallel.chunks=2"], ["parallel.chunks=2", "parallel.pipeline is 1"]),
    "more chunks than layers": (["parallel.pipeline=2", "parallel.chunks=3"], ["= 6 pieces", "4 language layers"]),
    "unknown recomputation": (
        ["parallel.recompute.vision=all"],
        ["vision needs one of none, selective, full"],
    ),
    "empty piece": (["parallel.pipeline=2", "parallel.split=[0,4]"], ["at least 1 language layer"]),
    "ZeRO-2 under a pipeline": (
        ["parallel.pipeline=2", "parallel.zero=2"],
        ["parallel.zero=2", "parallel.pipeline=2", "reduce and re-shard all gradients", "set parallel.zero=1"],
    ),
    "ZeRO-3 under a pipeline": (
        ["parallel.pipeline=2", "parallel.zero=3"],
        ["parallel.zero=3", "parallel.pipeline=2", "gather all weights", "set parallel.zero=1"],
    ),
    "ZeRO-2 without one": (["parallel.zero=2"], ["parallel.zero=2", "each microbatch", "parallel.tensor"]),
    "ZeRO-3 without one": (["parallel.zero=3"], ["parallel.zero=3", "each microbatch", "parallel.tensor"]),
    "no ZeRO": (["parallel.zero=0"], ["parallel.zero=0", "all of the optimizer's state", "set parallel.zero=1"]),
    "no such ZeRO": (["parallel.zero=4"], ["parallel.zero=4", "1, 2 and 3"]),
    "kernel by a word": (["parallel.kernels.fused_norms=fast"], ["parallel.kernels.fused_norms needs bool", "'fast'"]),
    "sequence parallel alone": (["parallel.sequence_parallel=true"], ["parallel.tensor is 1"]),
    "two lengths": (["stage.tokens=5"], ["stage.steps=600", "stage.tokens=5"]),
    "no length": (["stage.steps=null"], ["stage.steps=None", "stage.tokens=None"]),
    "no steps": (["stage.steps=0"], ["stage.steps=0", "at least 1"]),
    "warm-up beyond the end": (["stage.warmup=1"], ["stage.warmup=1.0", "< 1"]),
    "negative clip": (["optimizer.clip_norm=-1"], ["optimizer.clip_norm=-1", "positive"]),
    "unknown part": (["stage.trainable=[visio]"], ["'visio'", "vision, merger, language"]),
    "unknown fresh part": (["init.fresh=[resampler]"], ["init.fresh", "'resampler'", "vision, merger, language"]),
    "no part": (["stage.trainable=[]"], ["stage.trainable is empty"]),
    "part without a rate": (["~stage.learning_rates.merger"], ["merger", "no rate", "stage.learning_rates.merger"]),
    "part with rate zero": (["stage.learning_rates.merger=0"], ["merger", "rate 0", "stage.learning_rates.merger"]),
    "two sources of weights": (["init.from_hf=a"], ["init.from_run", "init.from_hf", "null"]),
    "decay of no part": (["+stage.weight_decays.visio=0.1"], ["stage.weight_decays", "'visio'", "vision, merger"]),
    "layers of no part": (["+stage.layer_decays.llm=0.9"], ["stage.layer_decays", "'llm'", "vision, merger, language"]),
    "layers of the merger": (["+stage.layer_decays.merger=0.9"], ["names merger, which has no layers"]),
    "negative decay": (["+stage.weight_decays.vision=-0.1"], ["stage.weight_decays.vision=-0.1", "0 or more"]),
    "layers that stand still": (["+stage.layer_decays.vision=0"], ["stage.layer_decays.vision=0", "0 < d <= 1"]),
    "layers that rise": (["+stage.layer_decays.vision=1.1"], ["stage.layer_decays.vision=1.1", "0 < d <= 1"]),
    "language twice": (
        ["init.language=a", "init.fresh=[language]"],
        ["init.language=a", "init.fresh=['language']", "both give language", "init.language=null"],
    ),
    "vision twice": (["init.vision=a", "init.fresh=[vision]"], ["init.vision=a", "both give vision"]),
    "a tower for a model without": (["init.vision=a", "~model.vision"], ["init.vision=a", "no vision part"]),
    "a run that gives nothing": (
        ["init.language=a", "init.vision=b", "init.fresh=[merger]"],
        ["init.from_run", "no part to give"],
    ),
    "an activation of nothing": (["init.accept_activation=gelu"], ["init.accept_activation=gelu", "init.vision"]),
    "patch sizes": (["data.image.patch_size=16"], ["patch_size", "14 and 16"]),
    "too few patches": (["data.patches_per_row=100"], ["data.patches_per_row=100", "25088", "128"]),
    "too few tokens": (["data.tokens_per_row=20"], ["data.tokens_per_row=20", "34", "14112"]),
    "keep every nothing": (["checkpoint.keep_every_steps=0"], ["checkpoint.keep_every_steps=0", "1 or null"]),
    "upload to a folder": (["checkpoint.upload=runs/copy"], ["checkpoint.upload=runs/copy", "oss://bucket/prefix"]),
    "upload to no prefix": (["checkpoint.upload='oss://bucket'"], ["oss://bucket is no place", "oss://bucket/prefix"]),
    "upload to nowhere": (["checkpoint.upload='oss://bucket/run'"], ["checkpoint.upload", "set data.oss.region"]),
    "upload nothing a second": (["checkpoint.upload_bytes_per_second=0"], ["upload_bytes_per_second=0", "more than 0"]),
    "keep nothing": (["checkpoint.keep=0"], ["checkpoint.keep=0", "at least 1"]),
    "no time to end in": (["checkpoint.grace_seconds=0"], ["checkpoint.grace_seconds=0", "more than 0"]),
    "empty run folder": (["run_dir="], ["run_dir is empty"]),
    "not a number": (["optimizer.clip_norm=nan"], ["optimizer.clip_norm", "finite", "nan"]),
    "endless rate": (["stage.learning_rates.vision=inf"], ["stage.learning_rates.vision", "finite"]),
    "no heads": (["model.language.num_heads=0"], ["model.language: num_heads=0", "more than 0"]),
    "no layers": (["model.vision.depth=0"], ["model.vision: depth=0", "more than 0"]),
    "eps that fp32 does not have": (["optimizer.eps=1e-300"], ["optimizer.eps=1e-300", "set 1e-30 or more"]),
    "more time than there is": (["parallel.timeout_seconds=1e300"], ["parallel.timeout_seconds is 1e+300", "1e+06"]),
    "a bucket past counting": (["parallel.reduce_bucket_elements=9000000000"], ["from 1 to 2,147,483,647"]),
    "no time": (["parallel.timeout_seconds=0"], ["parallel.timeout_seconds is 0", "from 5"]),
    "parts drawn alike": (["init.std=0"], ["init.std=0", "more than 0"]),
    "a part twice": (["stage.trainable=[vision,vision]"], ["stage.trainable", "twice"]),
    "too large a seed": (["seed=99999999999999999999"], ["seed=99999999999999999999", "63 bits"]),
    "a number for a group": (["stage=4"], ["does not compose", "int"]),
    "a record's own check": (["model.language.num_heads=5"], ["hidden_size 128", "num_heads 5"]),
}


@pytest.mark.parametrize(("overrides", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_recipe_is_refused_with_numbers_and_cure(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        compose("quickstart_stage2", [*PINNED, *overrides])
    for word in words:
        assert word in str(caught.value)


def test_the_unchanged_recipe_is_not_refused() -> None:
    run = compose("quickstart_stage2")
    assert isinstance(run, RunConfig)
    assert run.stage.trainable == ("vision", "merger", "language")


@pytest.mark.parametrize(
    ("overrides", "world_size", "words"),
    [
        (["parallel.tensor=2"], 3, ["3 processes", "parallel.tensor=2", "multiple of 2"]),
        ([], 5, ["data.rows_per_step=4", "5 replicas", "start fewer processes", "data.rows_per_step=5"]),
        (["data.rows_per_step=1"], 2, ["data.rows_per_step=1", "data.rows_per_step=2"]),
    ],
)
def test_the_number_of_processes_is_checked(overrides: list[str], world_size: int, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        compose("quickstart_stage2", [*PINNED, *overrides], world_size=world_size)
    for word in words:
        assert word in str(caught.value)
    compose("quickstart_stage2", [*PINNED, "parallel.tensor=2"], world_size=4)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        compose("quickstart_stage2", ["stage.stepz=3", "run_dir=null", "precision=half"])
    assert str(caught.value).count("\n  - ") == 3


def test_ints_become_floats_where_declared_and_lists_become_tuples() -> None:
    run = compose("quickstart_stage2", ["optimizer.clip_norm=2", "optimizer.betas=[0,0.5]", "data.video.fps=3"])
    assert type(run.optimizer.clip_norm) is float
    assert run.optimizer.betas == (0.0, 0.5)
    assert type(run.optimizer.betas[0]) is float
    assert type(run.data.video.fps) is float


def test_a_key_that_the_recipe_leaves_at_its_default_can_be_set() -> None:
    run = compose("quickstart_stage2", ["parallel.timeout_seconds=30", "stage.tokens=1000", "stage.steps=null"])
    assert run.parallel.timeout_seconds == 30.0
    assert run.stage.tokens == 1000


def test_the_run_to_start_from_has_a_short_name_on_the_command_line() -> None:
    assert compose("quickstart_stage2", ["init.from=runs/other"]).init.from_run == "runs/other"


def test_group_choices_and_flags_stay_as_they_are() -> None:
    given = [
        "--config-name",
        "a",
        "model=tiny",
        "+x=1",
        "~y",
        "hydra.verbose=true",
        "stage.steps=3",
        "--print=x=1",
        "/a=b/c",
    ]
    assert loosen(given) == [*given[:6], "++stage.steps=3", *given[7:]]


def test_a_saved_recipe_composes_to_the_same_run(tmp_path) -> None:
    run = compose("quickstart_stage2", ["seed=7", "parallel.pipeline=2", "parallel.split=[1,3]"])
    (tmp_path / "recipe.yaml").write_text(to_yaml(run))
    assert compose("recipe", folder=tmp_path) == run
    changed = compose("recipe", ["stage.steps=9"], folder=tmp_path)
    assert changed.stage.steps == 9
    assert changed.data.seed == 7


def test_the_order_of_data_follows_the_seed_of_the_run() -> None:
    assert compose("quickstart_stage2", ["seed=3"]).data.seed == 3


def test_something_that_is_no_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match="run_dir is missing"):
        to_run_config(OmegaConf.create({}))


def test_a_saved_recipe_may_tell_hydra_nothing_of_its_own() -> None:
    saved = to_yaml(compose("quickstart_stage2"))
    check_saved(saved)
    for one, other in (("run: {dir: .}", "run: {dir: /tmp}"), ("- _self_", "- _self_\n  - override hydra/launcher: x")):
        assert one in saved
        with pytest.raises(RecipeError, match="than checkpoints are written with"):
            check_saved(saved.replace(one, other))
