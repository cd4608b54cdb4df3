"""Hugging Face folders that cannot be read: what the error says."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.hf_config import check_sizes, config_from_hf
from model.hf_read import open_hf
from model.part_folder import open_whole
from model.tensor_folder import INDEX_FILE
from tests.model.tiny import LANGUAGE, TINY, export, random_weights, tied

HEAD, EMBEDDING, OUTPUT = "lm_head.weight", "model.embed_tokens.weight", "language.output_layer.weight"


@pytest.fixture
def folder(tmp_path: Path, tokenizer_folder: Path) -> Path:
    return export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder)


def test_a_shard_that_the_index_names_is_absent(tmp_path: Path, tokenizer_folder: Path) -> None:
    sharded = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder, max_shard_bytes=40_000)
    files = sorted(set(json.loads((sharded / INDEX_FILE).read_text())["weight_map"].values()))
    (sharded / files[1]).unlink()
    with pytest.raises(ValueError, match=f"lacks {files[1]}"):
        open_hf(sharded, TINY)


@pytest.mark.parametrize("keep", [0, 5, 900, -1], ids=["empty", "no header", "half a header", "a byte short"])
def test_a_damaged_file_is_named(keep: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read as safetensors"):
        open_hf(folder, TINY)


def test_an_index_that_is_no_index_is_named(folder: Path) -> None:
    (folder / INDEX_FILE).write_text('{"weight_map": ["model.safetensors"]}')
    with pytest.raises(ValueError, match="has no weight_map"):
        open_hf(folder, TINY)


def test_quantised_weights_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, file)
    with pytest.raises(ValueError, match=f"{name} is I8; quantised"):
        open_hf(folder, TINY)
    save_file({key: value for key, value in tensors.items() if key != name} | {f"{name}.qweight": tensors[name]}, file)
    with pytest.raises(ValueError, match=rf"(?s)missing {name} .*no place for {name}\.qweight"):
        open_hf(folder, TINY)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match=r"quantised \(gptq\)"):
        config_from_hf(folder)


def test_a_layer_that_is_left_out_is_named_whole(folder: Path) -> None:
    file = folder / "model.safetensors"
    renamed = {name.replace("model.layers.1.", "model.layers.7."): value for name, value in load_file(file).items()}
    save_file(renamed, file)
    with pytest.raises(ValueError) as caught:
        open_hf(folder, TINY)
    message = str(caught.value)
    assert message.count("missing model.layers.1.") == message.count("no place for model.layers.7.") == 12


def test_heads_that_one_side_ties_are_told_as_such(folder: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has a head of its own .*=false.*tie_embeddings is true; set it to false"):
        check_sizes(folder, tied(TINY))
    check_sizes(folder, tied(TINY), ["vision", "merger"])
    own = export(tmp_path / "tied", tied(TINY), random_weights(tied(TINY)), tokenizer_folder)
    with pytest.raises(ValueError, match=r"ties its head .*=true.*tie_embeddings is false; set it to true"):
        check_sizes(own, TINY)
    with pytest.raises(ValueError, match=r"missing lm_head\.weight \(40, 48\)$"):
        open_hf(own, TINY)


def test_the_flag_of_a_folder_decides_even_where_its_head_is_the_embedding(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, file)
    for config, said in ((TINY, None), (tied(TINY), "has a head of its own")):
        if said is None:
            assert torch.equal(open_whole(folder, config, TINY.parts).reader.read(OUTPUT), tensors[EMBEDDING])
        else:
            with pytest.raises(ValueError, match=said):
                open_whole(folder, config, TINY.parts)
    # What is taken of the folder has no head: the flag is no matter then.
    assert HEAD in open_whole(folder, tied(TINY), ["vision", "merger"]).dropped


def test_a_head_is_held_to_what_it_is_tied_to(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Bit for bit: zeros of two signs are equal, and another dtype is another tensor."""
    config = tied(TINY)
    folder = export(tmp_path / "hf", config, random_weights(config), tokenizer_folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[EMBEDDING][3] = 0.0
    negative = tensors[EMBEDDING].clone()
    negative[3] *= -1
    for head in (negative, tensors[EMBEDDING].double(), tensors[EMBEDDING][:-1].clone(), torch.tensor(1.0)):
        save_file(tensors | {HEAD: head}, file)
        with pytest.raises(ValueError, match=r"lm_head\.weight is another tensor than model\.embed_tokens\.weight"):
            open_hf(folder, config)
    with_nan = tensors[EMBEDDING].clone()
    with_nan[0] = math.nan
    save_file(tensors | {EMBEDDING: with_nan, HEAD: with_nan.clone()}, file)
    open_hf(folder, config)


@pytest.mark.parametrize("shape", [None, ()], ids=["absent", "a scalar"])
def test_a_tied_folder_without_its_embedding_is_named(
    shape: tuple[int, ...] | None, tmp_path: Path, tokenizer_folder: Path
) -> None:
    config = tied(TINY)
    folder = export(tmp_path / "hf", config, random_weights(config), tokenizer_folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    if shape is not None:
        tensors[EMBEDDING] = torch.ones(shape)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"missing model\.embed_tokens\.weight|embed_tokens\.weight has shape \(\)"):
        open_hf(folder, config)


def test_a_head_of_another_shape_is_told_as_that_alone(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | {HEAD: torch.ones(4, 48)}, file)
    with pytest.raises(ValueError, match=r"lm_head\.weight has shape \(4, 48\), the model needs \(40, 48\)$"):
        open_hf(folder, TINY)


@pytest.mark.parametrize("form", ["published", "nested"])
def test_another_size_is_refused_with_both_values(form: str, folder: Path) -> None:
    if form == "nested":
        config = json.loads((folder / "config.json").read_text())
        kept = {"architectures", "model_type", "vision_config", "tie_word_embeddings"}
        text = {key: value for key, value in config.items() if key not in kept}
        nested = {key: config[key] for key in kept} | {"text_config": text}
        (folder / "config.json").write_text(json.dumps(nested))
    check_sizes(folder, TINY)
    other = replace(TINY, language=replace(LANGUAGE, num_layers=4, ffn_size=64))
    with pytest.raises(ValueError, match=r"num_layers is 3 there and 4 here; model\.language\.ffn_size is 56 there"):
        check_sizes(folder, other)
