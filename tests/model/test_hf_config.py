"""Model folders that cannot be read or written, and the small files beside the weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import LanguageConfig, ModelConfig
from model.hf_config import check_sizes, config_from_hf, declared_ids
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
