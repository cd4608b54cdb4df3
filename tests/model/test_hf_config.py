"""Model folders that cannot be read or written, and the small files beside the weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen2VLConfig

from data.encoding.tokenizer import load_tokenizer
from model.config import LanguageConfig, ModelConfig
from model.hf_config import check_sizes, config_from_hf, declared_ids, special_ids
from tests.model.tiny import LANGUAGE, TINY, VISION, export, random_weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_5_vl"}, "qwen2_5_vl"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
    ],
)
def test_other_variants_are_refused(change: dict, message: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        config_from_hf(folder)


NESTED = {"rope_type": "default", "rope_theta": 50_000.0, "mrope_section": [2, 1, 1]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision_config": None}, "vision_config is missing"),
        ({"vision_config": [1]}, r"vision_config is \[1\]; a JSON object"),
        ({"vision_config": {"depth": "2"}}, r"vision_config\.depth is '2'; a whole number of at least 1"),
        ({"text_config": [1]}, r"text_config is \[1\]"),
        ({"rope_parameters": "x"}, "rope_parameters is 'x'"),
        ({"rope_scaling": "x"}, "rope_scaling is 'x'"),
        ({"quantization_config": "awq"}, r"quantised \(awq\)"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"hidden_size": 48.0}, r"hidden_size is 48\.0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; a whole number of at least 1"),
        ({"num_attention_heads": 5}, "hidden_size 48 is not a multiple of num_heads 5"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'; a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; true or false"),
        ({"rope_scaling": None}, "mrope_section is missing; only a plain qwen2"),
        ({"rope_scaling": {"type": "mrope"}}, "mrope_section is missing"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 2]}}, r"mrope_section is \[2, 2\]; three"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1, 0]}}, r"is \[2, 1, 1, 0\]; three"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": []}}, r"mrope_section is \[\]; three"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, "1"]}}, r"mrope_section is \[2, 1, '1'\]"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 2]}}, r"mrope_section \[2, 1, 2\] sums to 5"),
        # Both words at once. transformers 5 takes rope_scaling and forgets the other one.
        ({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": NESTED}, r"rope_scaling\.type is 'lin"),
        ({"rope_parameters": NESTED | {"rope_type": "yarn"}}, r"rope_parameters\.rope_type is 'yarn'"),
        ({"rope_parameters": NESTED | {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0\.5"),
        ({"rope_parameters": {"full_attention": NESTED}}, "full_attention is "),
        ({"rope_theta": None, "rope_parameters": NESTED}, "rope_theta is missing .rope_parameters does not count"),
        (
            {"rope_scaling": {"type": "mrope"}, "rope_parameters": NESTED},
            "mrope_section is missing .rope_parameters does not count",
        ),
        (
            {"rope_parameters": NESTED | {"mrope_section": [1, 1, 2]}},
            r"rope_scaling\.mrope_section is \(2, 1, 1\) and .*rope_parameters\.mrope_section is \(1, 1, 2\)",
        ),
        (
            {"rope_parameters": NESTED | {"rope_theta": 7.0}},
            r"rope_theta is 50000\.0 and .*rope_parameters\.rope_theta is 7\.0",
        ),
    ],
    ids=str,
)
def test_a_broken_config_is_told_with_file_key_and_value(
    change: dict, said: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    folder = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"{path}: .*{said}"):
        config_from_hf(folder)


def test_both_words_for_rotary_positions_may_say_the_same(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": NESTED}))
    assert config_from_hf(folder, TINY.name) == TINY
    rope = Qwen2VLConfig.from_pretrained(folder).text_config.rope_parameters
    assert (rope["rope_theta"], rope["mrope_section"]) == (50_000.0, [2, 1, 1])


def test_transformers_forgets_rope_parameters_beside_rope_scaling(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Why what stands in rope_parameters alone is refused then: the base that it names is not used."""
    folder = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": None, "rope_parameters": NESTED}))
    assert Qwen2VLConfig.from_pretrained(folder).text_config.rope_parameters["rope_theta"] != 50_000.0


@pytest.mark.parametrize("found", ["9", 9.0, [9], -1])
def test_a_declared_id_that_is_none_is_named(found: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"image_token_id": found}))
    with pytest.raises(ValueError, match=r"config\.json: image_token_id is .*; a whole number of at least 0"):
        declared_ids(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    for read in (special_ids, load_tokenizer):
        with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read as a tokenizer: "):
            read(tmp_path)


def test_export_refuses_what_transformers_cannot_express(tmp_path: Path, tokenizer_folder: Path) -> None:
    language = {name: getattr(LANGUAGE, name) for name in LanguageConfig.__dataclass_fields__}
    wide = ModelConfig(
        name="wide",
        language=LanguageConfig(**(language | {"head_size": 16, "mrope_section": (4, 2, 2)})),
        vision=VISION,
    )
    with pytest.raises(ValueError, match="a head of 16"):
        export(tmp_path / "a", wide, random_weights(wide), tokenizer_folder)
    small = ModelConfig(name="small", language=LanguageConfig(**(language | {"vocab_size": 21})), vision=VISION)
    with pytest.raises(ValueError, match="vocabulary of 21"):
        export(tmp_path / "b", small, random_weights(small), tokenizer_folder)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_image_processor_reads_the_preprocessor_file(tmp_path: Path, tokenizer_folder: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (3136, 50176)
    assert (processor.patch_size, processor.temporal_patch_size, processor.merge_size) == (14, 2, 2)
    assert (folder / "tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()


def test_declared_ids_are_read_for_the_tokenizer_check(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"image_token_id": 9, "vision_end_token_id": 4, "hidden_size": 8}')
    assert declared_ids(tmp_path) == {"image_pad": 9, "vision_end": 4}


def test_a_folder_of_the_same_shapes_that_computes_something_else_is_refused(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    folder = export(tmp_path / "hf", TINY, random_weights(TINY), tokenizer_folder)
    check_sizes(folder, TINY)
    halves = replace(LANGUAGE, rope_theta=1e6, num_heads=12, num_kv_heads=4, mrope_section=(1, 1, 0))
    other = replace(TINY, language=halves, vision=replace(VISION, num_heads=2))
    with pytest.raises(ValueError, match=r"(?s)language\.num_heads is 6 there and 12 here.*rope_theta.*vision\.num_h"):
        check_sizes(folder, other)
    check_sizes(folder, replace(other, vision=VISION), ["vision", "merger"])


def test_a_plain_language_model_gives_its_part_alone(tmp_path: Path, tokenizer_folder: Path) -> None:
    plain = ModelConfig(name="plain", language=LANGUAGE)
    folder = export(tmp_path / "hf", plain, random_weights(plain), tokenizer_folder)
    check_sizes(folder, TINY, ["language"])  # whatever its sections are: text rotates alike on all axes
    with pytest.raises(ValueError, match=r"vision\.depth is None there"):
        check_sizes(folder, TINY)
