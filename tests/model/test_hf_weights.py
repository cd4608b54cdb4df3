"""Weights of Hugging Face folders, against transformers itself."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.hf_config import config_from_hf, special_ids
from model.hf_read import fill_boxes, open_hf
from model.hf_weights import canonical_shape, from_hf, hf_pieces, in_memory_name, published_name, to_hf
from model.part_folder import open_whole
from model.tensor_folder import INDEX_FILE
from tests.model.tiny import LANGUAGE, TINY, VISION, export, random_weights, tied


def published(hidden: int, layers: int, heads: int, kv: int, ffn: int, vocab: int, tie: bool) -> ModelConfig:
    return ModelConfig(
        name="published",
        vision=VisionConfig(depth=32, embed_dim=1280, num_heads=16),
        language=LanguageConfig(
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv,
            ffn_size=ffn,
            vocab_size=vocab,
            mrope_section=(16, 24, 24),
            tie_embeddings=tie,
        ),
    )


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((1536, 28, 12, 2, 8960, 151936, True), 2_208_985_600),
        ((3584, 28, 28, 4, 18944, 152064, False), 8_291_375_616),
        ((8192, 80, 64, 8, 29568, 152064, False), 73_405_560_320),
    ],
)
def test_published_sizes_are_exact(sizes: tuple, count: int) -> None:
    pieces = hf_pieces(published(*sizes))
    assert sum(math.prod(canonical_shape(parts)) for parts in pieces.values()) == count
    hf_shapes = {piece.hf_name: piece.hf_shape for parts in pieces.values() for piece in parts}
    assert sum(math.prod(shape) for shape in hf_shapes.values()) == count


@pytest.mark.parametrize("config", [TINY, tied(TINY)], ids=["untied", "tied"])
def test_transformers_loads_our_folder_bit_for_bit(config: ModelConfig, tmp_path: Path, tokenizer_folder: Path) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    weights = random_weights(config)
    # Small shards: the index and its files are part of what is proved.
    folder = export(tmp_path / "hf", config, weights, tokenizer_folder, max_shard_bytes=40_000)
    assert (folder / INDEX_FILE).is_file()
    model, report = Qwen2VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    state = model.state_dict()
    assert model.dtype == torch.float32
    expected: dict[str, Tensor] = {}
    for name, pieces in hf_pieces(config).items():
        expected |= {in_memory_name(key): value for key, value in to_hf(pieces, weights[name]).items()}
    if config.language.tie_embeddings:
        expected["lm_head.weight"] = expected["model.language_model.embed_tokens.weight"]
        assert model.lm_head.weight.data_ptr() == model.model.language_model.embed_tokens.weight.data_ptr()
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert torch.equal(state[name], value), name

    text = model.config.text_config
    assert text.rope_parameters["rope_theta"] == 50_000.0
    assert text.rope_parameters["mrope_section"] == [2, 1, 1]
    assert text.rms_norm_eps == config.language.rms_norm_eps
    ids = special_ids(tokenizer_folder)
    assert ids["image"] != 151655
    assert (model.config.image_token_id, model.config.video_token_id) == (ids["image"], ids["video"])
    assert model.config.vision_start_token_id == ids["vision_start"]
    assert set(model.generation_config.eos_token_id) == {ids["eos"], ids["bos"]}
    assert config_from_hf(folder, name="tiny") == config


def test_projections_are_those_of_the_right_heads(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Marks one canonical entry of each fused tensor and looks for it where transformers' code reads that head."""
    weights = {name: torch.zeros_like(value) for name, value in random_weights(TINY).items()}
    head, width = LANGUAGE.head_dim, VISION.head_dim
    language = weights["language.decoder.layers.1.self_attention.linear_qkv.weight"]
    language[1, 2, 5, 7] = 1.0  # group 1, its third query head
    language[1, 3, 4, 6] = 2.0  # group 1, key
    language[0, 4, 3, 5] = 3.0  # group 0, value
    vision = weights["vision.blocks.layers.1.self_attention.linear_qkv.bias"]
    vision[3, 1, 2] = 4.0  # head 3, key
    fused = weights["language.decoder.layers.2.mlp.linear_fc1.weight"]
    fused[1, 9, 8] = 5.0  # up
    patch = weights["vision.patch_embed.weight"]
    patch[3, 2 * 392 + 1 * 196 + 5 * 14 + 6] = 6.0  # channel 2, frame 1, row 5, column 6
    folder = export(tmp_path / "hf", TINY, weights, tokenizer_folder)
    found = load_file(folder / "model.safetensors")
    attention = "model.layers.1.self_attn"
    assert found[f"{attention}.q_proj.weight"][(1 * 3 + 2) * head + 5, 7] == 1.0
    assert found[f"{attention}.k_proj.weight"][1 * head + 4, 6] == 2.0
    assert found[f"{attention}.v_proj.weight"][0 * head + 3, 5] == 3.0
    assert found["visual.blocks.1.attn.qkv.bias"].view(3, 4, width)[1, 3, 2] == 4.0
    assert found["model.layers.2.mlp.up_proj.weight"][9, 8] == 5.0
    assert found["visual.patch_embed.proj.weight"][3, 2, 1, 5, 6] == 6.0
    assert sum(float(value.abs().sum()) for value in found.values()) == 21.0


# Tensors of one shape that a swap would not betray, by what transformers' forward does with each.
SAME_SHAPE = {
    "vision.blocks.layers.1.input_layernorm.weight": "visual.blocks.1.norm1.weight",
    "vision.blocks.layers.1.input_layernorm.bias": "visual.blocks.1.norm1.bias",
    "vision.blocks.layers.1.pre_mlp_layernorm.weight": "visual.blocks.1.norm2.weight",
    "vision.blocks.layers.1.pre_mlp_layernorm.bias": "visual.blocks.1.norm2.bias",
    "vision.blocks.layers.1.self_attention.linear_proj.bias": "visual.blocks.1.attn.proj.bias",
    "vision.blocks.layers.1.mlp.linear_fc2.bias": "visual.blocks.1.mlp.fc2.bias",
    "merger.norm.weight": "visual.merger.ln_q.weight",
    "merger.norm.bias": "visual.merger.ln_q.bias",
    "language.decoder.layers.2.input_layernorm.weight": "model.layers.2.input_layernorm.weight",
    "language.decoder.layers.2.pre_mlp_layernorm.weight": "model.layers.2.post_attention_layernorm.weight",
    "language.decoder.final_layernorm.weight": "model.norm.weight",
    "language.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "language.output_layer.weight": "lm_head.weight",
}


def test_tensors_of_one_shape_are_not_swapped() -> None:
    found = {name: tuple(piece.hf_name for piece in pieces) for name, pieces in hf_pieces(TINY).items()}
    assert {name: found[name] for name in SAME_SHAPE} == {name: (theirs,) for name, theirs in SAME_SHAPE.items()}
    all_names = [name for names in found.values() for name in dict.fromkeys(names)]
    assert len(all_names) == len(set(all_names)), "two canonical tensors claim one of transformers'"


def boxes_of(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    yield (0,) * len(shape), shape
    for dim, size in enumerate(shape):
        for start, stop in ((0, size // 2), (size // 2, size), (size - 1, size)):
            if start < stop:
                offset, box = [0] * len(shape), list(shape)
                offset[dim], box[dim] = start, stop - start
                yield tuple(offset), tuple(box)


@pytest.mark.parametrize("form", ["published", "nested"])
def test_reader_gives_every_box(form: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    weights = random_weights(TINY, seed=1)
    folder = export(tmp_path / "hf", TINY, weights, tokenizer_folder)
    if form == "nested":
        file = folder / "model.safetensors"
        save_file({in_memory_name(name): value for name, value in load_file(file).items()}, file)
    reader = open_hf(folder, TINY)
    assert set(reader.names()) == set(weights)
    for name, whole in weights.items():
        assert reader.shape(name) == tuple(whole.shape)
        assert torch.equal(reader.read(name), whole)
        for offset, shape in boxes_of(tuple(whole.shape)):
            window = tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))
            target = torch.full(shape, math.nan)
            reader.read_into(target, name, offset)
            assert torch.equal(target, whole[window]), (name, offset, shape)


@dataclass(frozen=True)
class Half:
    """Tensor rank `rank` of 2, cut along `dim`; its memory has a padding row, as a vocabulary may."""

    name: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def view(self, parameter: Tensor) -> Tensor:
        return parameter[: math.prod(self.shape)].view(self.shape)


@pytest.mark.parametrize("parts", [None, ("vision",), ("merger", "language")])
def test_a_rank_takes_its_boxes_of_the_parts_it_wants(
    parts: tuple[str, ...] | None, tmp_path: Path, tokenizer_folder: Path
) -> None:
    weights = random_weights(TINY, seed=2)
    folder = export(tmp_path / "hf", TINY, weights, tokenizer_folder)
    for rank in range(2):
        boxes, memory, expected = {}, {}, {}
        for name, whole in weights.items():
            columns = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            dim = int(columns or (name.startswith("language") and "linear_fc1" in name))
            size = whole.shape[dim] // 2
            offset = tuple(rank * size if at == dim else 0 for at in range(whole.dim()))
            half = whole.narrow(dim, rank * size, size)
            boxes[f"local.{name}"] = Half(name, offset, tuple(half.shape))
            memory[f"local.{name}"] = torch.zeros(half.numel() + 3)
            wanted = parts is None or name.split(".")[0] in parts
            expected[f"local.{name}"] = half.flatten() if wanted else torch.zeros(half.numel())
        fill_boxes(memory, boxes, open_whole(folder, TINY, parts or TINY.parts).reader)  # type: ignore[arg-type]
        for name, values in expected.items():
            assert torch.equal(memory[name][:-3], values) and not memory[name][-3:].any(), name


def test_folder_saved_by_transformers_is_read(tmp_path: Path) -> None:
    """The other direction: what transformers saves, canonical and back, is the same bits."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    theirs = Qwen2VLConfig(
        text_config={
            "hidden_size": 48,
            "intermediate_size": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": 40,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0, "mrope_section": [2, 1, 1]},
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 48},
        tie_word_embeddings=False,
    )
    model = Qwen2VLForConditionalGeneration(theirs)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "theirs")
    config = config_from_hf(tmp_path / "theirs", name="tiny")
    assert config == TINY
    state = {published_name(name): value for name, value in model.state_dict().items()}
    back: dict[str, Tensor] = {}
    reader = open_hf(tmp_path / "theirs", config)
    for name in reader.names():
        canonical = reader.read(name)
        assert torch.equal(canonical, from_hf(hf_pieces(config)[name], state))
        back |= to_hf(hf_pieces(config)[name], canonical)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_text_model_is_exported_as_qwen2_and_serves_a_model_with_vision(tmp_path: Path, tokenizer_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    text_only = ModelConfig(name="text", language=tied(TINY).language)
    weights = random_weights(text_only)
    folder = export(tmp_path / "hf", text_only, weights, tokenizer_folder)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert config_from_hf(folder).language.tie_embeddings
    reader = open_hf(folder, tied(TINY), parts=("language",))
    assert all(torch.equal(reader.read(name), weights[name]) for name in reader.names())
    with pytest.raises(ValueError, match=r"missing visual\.patch_embed"):
        open_hf(folder, tied(TINY))


def test_wrong_tensors_are_named(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.self_attn.k_proj.bias"]
    tensors["visual.merger.ln_q.weight"] = torch.zeros(31)
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    save_file(tensors, file)
    with pytest.raises(ValueError) as caught:
        open_hf(folder, TINY)
    message = str(caught.value)
    assert "missing model.layers.0.self_attn.k_proj.bias (16,)" in message
    assert "visual.merger.ln_q.weight has shape (31,), the model needs (32,)" in message
    assert "no place for model.layers.9.mlp.up_proj.weight" in message


def test_a_head_beside_tied_embeddings_must_equal_them(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = tied(TINY)
    folder = export(tmp_path / "hf", config, random_weights(config), tokenizer_folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    open_hf(folder, config)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(ValueError, match=r"lm_head\.weight is another tensor"):
        open_hf(folder, config)


def test_pieces_of_several_dtypes_are_read_in_the_one_that_holds_them_all(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    folder = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder)
    file = folder / "model.safetensors"
    layer, down = "model.layers.1.self_attn", "model.layers.0.mlp.down_proj.weight"
    stored = load_file(file)
    stored |= {f"{layer}.{one}_proj.weight": stored[f"{layer}.{one}_proj.weight"].bfloat16() for one in "qv"}
    stored |= {"model.layers.0.mlp.gate_proj.weight": stored["model.layers.0.mlp.gate_proj.weight"].bfloat16()}
    stored |= {"model.layers.0.mlp.up_proj.weight": stored["model.layers.0.mlp.up_proj.weight"].half()}
    save_file(stored | {down: stored[down].bfloat16()}, file)
    reader = open_hf(folder, TINY)
    decoder = "language.decoder.layers"
    fused = [f"{decoder}.0.mlp.linear_fc1.weight", f"{decoder}.1.self_attention.linear_qkv.weight"]
    assert sorted(reader.widened()) == fused
    pieces = hf_pieces(TINY)
    for name in fused:
        back = to_hf(pieces[name], reader.read(name))
        assert all(
            value.dtype == torch.float32 and torch.equal(value, stored[key].float()) for key, value in back.items()
        )
    assert reader.read(f"{decoder}.0.mlp.linear_fc2.weight").dtype == torch.bfloat16


def test_index_cannot_point_outside(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder, max_shard_bytes=40_000)
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside of its folder"):
        open_hf(folder, TINY)
