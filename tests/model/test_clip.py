"""A tower out of a CLIP folder: the same patch embeddings, the same layers, and everything else said or refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.clip import open_clip
from model.config import ModelConfig
from tests.harness.part_folders import CLIP_MODEL, TOWER, canonical_tower, clip_differences, make_clip
from tests.prove.context import LAYOUTS, Worlds


@pytest.mark.parametrize("layout", ["one process", "TP2", "PP2"])
def test_patch_embeddings_and_layers_are_those_of_clip(layout: str, worlds: Worlds, tmp_path: Path) -> None:
    make_clip(tmp_path / "clip")
    size, parallel = LAYOUTS[layout]
    found = worlds.run(size, clip_differences, parallel=parallel, run_dir=tmp_path, folder=tmp_path / "clip")
    assert found[0] is not None and (layout != "PP2" or found[1] is None)
    for rank in filter(None, found):
        assert rank.patches < 1e-6 and rank.patches_in_double < 1e-12 and rank.layers < 1e-6, rank


@pytest.mark.parametrize("form", ["whole", "tower", "projection"])
def test_every_form_of_folder_gives_the_same_tensors_and_names_what_it_loses(form: str, tmp_path: Path) -> None:
    """transformers 5.23 saves CLIPVisionModel's tower without `vision_model.`, the two others with it."""
    state = make_clip(tmp_path, form, image_size=70)
    opened = open_clip(tmp_path, CLIP_MODEL)
    expected = canonical_tower(state)
    assert set(opened.reader.names()) == set(expected)
    assert all(torch.equal(opened.reader.read(name), value) for name, value in expected.items())
    stored = set(load_file(tmp_path / "model.safetensors"))
    prefix = "" if form == "tower" else "vision_model."
    dropped = {
        prefix + name
        for name in ("embeddings.class_embedding", "embeddings.position_embedding.weight")
        + tuple(f"{norm}.{kind}" for norm in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias"))
    }
    if form != "tower":
        dropped.add("visual_projection.weight")
    if form == "whole":
        dropped |= {"text_projection.weight", "logit_scale"}
        dropped |= {name for name in stored if name.startswith("text_model.")}
    assert set(opened.dropped) == dropped
    assert opened.differs == ()


def test_the_buffer_that_older_folders_hold_is_dropped(tmp_path: Path) -> None:
    make_clip(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"embeddings.position_ids": torch.arange(17)[None]}, file)
    assert "embeddings.position_ids" in open_clip(tmp_path, CLIP_MODEL).dropped


def test_another_epsilon_is_told(tmp_path: Path) -> None:
    make_clip(tmp_path)
    model = replace(CLIP_MODEL, vision=replace(TOWER, layernorm_eps=1e-6))
    assert open_clip(tmp_path, model).differs == ("layer_norm_eps is 1e-05 there and 1e-06 here",)


def test_values_that_a_config_leaves_out_are_those_of_transformers(tmp_path: Path) -> None:
    make_clip(tmp_path, "whole")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key in ("hidden_act", "num_channels", "layer_norm_eps"):
        del config["vision_config"][key]
    path.write_text(json.dumps(config))
    assert open_clip(tmp_path, CLIP_MODEL).differs == ()
    del config["vision_config"]["num_hidden_layers"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="num_hidden_layers is 12 there"):
        open_clip(tmp_path, CLIP_MODEL)


def test_another_activation_must_be_accepted_by_its_name(tmp_path: Path) -> None:
    make_clip(tmp_path, hidden_act="gelu")
    with pytest.raises(ValueError, match=r"hidden_act 'gelu'.*init\.accept_activation=gelu"):
        open_clip(tmp_path, CLIP_MODEL)
    with pytest.raises(ValueError, match=r"accept_activation is 'quick_gelu' but .* 'gelu'"):
        open_clip(tmp_path, CLIP_MODEL, "quick_gelu")
    assert open_clip(tmp_path, CLIP_MODEL, "gelu").differs == ("hidden_act is gelu there and quick_gelu here",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, ["num_hidden_layers is 3 there", "model.vision.depth is 2 here"]),
        ({"num_attention_heads": 2}, ["num_attention_heads is 2 there", "model.vision.num_heads is 4 here"]),
        (
            {"hidden_size": 32, "intermediate_size": 100},
            ["hidden_size is 32 there", "embed_dim is 64 here", "intermediate_size is 100", "mlp_ratio is 256 here"],
        ),
        ({"patch_size": 28}, ["patch_size is 28 there", "model.vision.patch_size is 14 here"]),
        ({"num_channels": 4}, ["num_channels is 4 there", "model.vision.in_channels is 3 here"]),
    ],
)
def test_another_size_is_refused_with_both_values(changes: dict[str, int], words: list[str], tmp_path: Path) -> None:
    make_clip(tmp_path, **changes)
    with pytest.raises(ValueError) as caught:
        open_clip(tmp_path, CLIP_MODEL)
    for word in words:
        assert word in str(caught.value)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    make_clip(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layers.1.self_attn.v_proj.bias"]
    tensors["encoder.layers.0.mlp.fc1.weight"] = torch.zeros(64, 256)
    tensors["embeddings.patch_embedding.bias"] = torch.zeros(64)
    save_file(tensors, file)
    with pytest.raises(ValueError) as caught:
        open_clip(tmp_path, CLIP_MODEL)
    message = str(caught.value)
    assert "missing encoder.layers.1.self_attn.v_proj.bias (64,)" in message
    assert "encoder.layers.0.mlp.fc1.weight has shape (64, 256), the model needs (256, 64)" in message
    assert "no place for embeddings.patch_embedding.bias" in message


@pytest.mark.parametrize(
    ("form", "change", "said"),
    [
        ("whole", {"vision_config": [1]}, r"vision_config is \[1\]; a JSON object"),
        ("whole", {"vision_config": {"hidden_size": "64"}}, r"vision_config\.hidden_size is '64'"),
        ("tower", {"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5'; a number above 0"),
        ("tower", {"num_hidden_layers": 0}, "num_hidden_layers is 0; a whole number of at least 1"),
    ],
)
def test_a_broken_config_is_told_with_file_key_and_value(form: str, change: dict, said: str, tmp_path: Path) -> None:
    make_clip(tmp_path, form)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"{path}: .*{said}"):
        open_clip(tmp_path, CLIP_MODEL)


def test_other_folders_and_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        open_clip(tmp_path / "absent", CLIP_MODEL)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ValueError, match="model_type is 'siglip'"):
        open_clip(tmp_path, CLIP_MODEL)
    with pytest.raises(ValueError, match="text has no vision tower"):
        open_clip(tmp_path, ModelConfig(name="text", language=CLIP_MODEL.language))
