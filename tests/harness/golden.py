"""Published Qwen2-VL folders, as golden lists of tensors and configs, against what this code would write.

The lists lie in tests/model/golden, each with its source. None was made with this project's code.
"""

import json
from pathlib import Path
from typing import Any

import torch

import model.hf_config
import model.hf_weights
from model.config import ModelConfig
from model.hf_processor import generation_config, preprocessor_config
from train.resolve import compose

FOLDER = Path(__file__).resolve().parent.parent / "model" / "golden"
SIZES = ("2b", "7b", "72b")
IDS = {
    "bos": 151643,
    "eos": 151645,
    "pad": 151643,
    "vision_start": 151652,
    "vision_end": 151653,
    "vision_pad": 151654,
    "image": 151655,
    "video": 151656,
}
"""Of the published tokenizers, all three alike."""
ABSENT = "absent"
ALLOWED: dict[str, tuple[Any, str]] = {
    "config.transformers_version": (ABSENT, "names the release that wrote the file, and none wrote ours"),
    "config.vision_config.model_type": ("qwen2_vl", "left out by the published files, which then mean this value"),
    "config.vision_config.hidden_act": ("quick_gelu", "likewise"),
    "config.vision_config.in_channels": (3, "likewise; newer readers have this name for in_chans"),
    "generation_config.do_sample": (False, "theirs draws among the one likeliest token; ours takes it"),
    "generation_config.temperature": (ABSENT, "likewise"),
    "generation_config.top_k": (ABSENT, "likewise"),
    "generation_config.top_p": (ABSENT, "likewise"),
    "preprocessor_config.do_resize": (True, "left out by the published files, which then mean this value"),
    "preprocessor_config.do_rescale": (True, "likewise"),
    "preprocessor_config.do_normalize": (True, "likewise"),
    "preprocessor_config.do_convert_rgb": (True, "likewise"),
}
"""Keys in which our files differ from the published ones: our value, and why nothing reads them otherwise."""


def golden(size: str) -> dict[str, Any]:
    """The golden file of one size, names in short form."""
    found: dict[str, Any] = json.loads((FOLDER / f"qwen2vl_{size}.json").read_text())
    return found


def golden_tensors(size: str) -> dict[str, tuple[int, ...]]:
    """Every published name of one size and its shape."""
    told = golden(size)
    tensors = {}
    for name, shape in told["tensors"].items():
        stem, star, _ = name.partition(".*.")
        numbers = range(told["layers"][stem]) if star else range(1)
        tensors |= {name.replace("*", str(number)): tuple(shape) for number in numbers}
    return tensors


def our_model(size: str) -> ModelConfig:
    """As our recipe has it."""
    return compose(f"qwen2vl_{size}_stage2").model


def tensors_that_differ(size: str) -> list[str]:
    """Names that only one side has or that have another shape, ours against the golden list."""
    table = model.hf_weights.hf_pieces(our_model(size))
    ours = {piece.hf_name: piece.hf_shape for pieces in table.values() for piece in pieces}
    return _differing(ours, golden_tensors(size))


def transformers_differs(size: str) -> list[str]:
    """The same of the golden list against what transformers itself would save, made on the meta device."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.core_model_loading import revert_weight_conversion

    config = Qwen2VLConfig.from_dict(golden(size)["config"])
    with torch.device("meta"):
        built = Qwen2VLForConditionalGeneration(config)
    state = built.state_dict()
    if golden(size)["config"]["tie_word_embeddings"]:
        del state["lm_head.weight"]  # one tensor with the embedding: saved once
    saved = revert_weight_conversion(built, state)
    return _differing({name: tuple(value.shape) for name, value in saved.items()}, golden_tensors(size))


def keys_that_differ(size: str) -> list[str]:
    """Keys of config.json, generation_config.json and preprocessor_config.json with another value than published, or
    that only one side has, except `ALLOWED` ones."""
    config = our_model(size)
    assert config.vision is not None
    beside = json.loads((FOLDER / "beside.json").read_text())
    published = beside["preprocessor_config"]
    pairs = {
        "config": (model.hf_config.hf_config(config, IDS, torch.bfloat16), golden(size)["config"]),
        "generation_config": (generation_config(IDS), beside["generation_config"]),
        "preprocessor_config": (
            preprocessor_config(config.vision, published["min_pixels"], published["max_pixels"]),
            published,
        ),
    }
    found = []
    for file, (ours, theirs) in pairs.items():
        said = _flat(ours, file)
        for key in _differing(said, _flat(theirs, file)):
            if key not in ALLOWED or said.get(key, ABSENT) != ALLOWED[key][0]:
                found.append(key)
    return found


def transformers_reads_otherwise(size: str) -> list[str]:
    """Keys that transformers has after reading our config.json and has otherwise after reading the published one."""
    from transformers import Qwen2VLConfig

    ours = Qwen2VLConfig.from_dict(model.hf_config.hf_config(our_model(size), IDS, torch.bfloat16)).to_dict()
    theirs = Qwen2VLConfig.from_dict(golden(size)["config"]).to_dict()
    found = _differing(_flat(ours, "config"), _flat(theirs, "config"))
    return [key for key in found if key != "config.transformers_version"]


def _flat(section: dict[str, Any], path: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{path}.{key}"
        flat |= _flat(value, name) if isinstance(value, dict) else {name: value}
    return flat


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name, ABSENT) != theirs.get(name, ABSENT))
