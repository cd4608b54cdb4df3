"""What lies beside the weights of a Hugging Face folder: tokenizer, chat template, preprocessing, generation."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.config import VisionConfig
from model.json_file import read_json, write_json

log = logging.getLogger(__name__)

CONFIG = "tokenizer_config.json"
_PROCESSOR_TEMPLATE = "chat_template.json"
_JINJA = "chat_template.jinja"
FILES = (
    "tokenizer.json",
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    _JINJA,
    _PROCESSOR_TEMPLATE,
)


def copy_tokenizer(source: str | Path, target: Path, chat_template: str | None) -> None:
    """Copy a tokenizer into a model folder.

    Args:
        chat_template: for a model with vision. Written in the places where published Qwen2-VL folders have theirs
            (tokenizer_config.json for tokenizers, chat_template.json for processors) if `source` has no template or
            one that cannot show a picture: a Qwen2 tokenizer's would leave the picture out without a word.
    """
    source = Path(source)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if chat_template is None:
        return
    found = list(_templates(source))
    if found and all("<|image_pad|>" in text for text in found):
        if not (source / _JINJA).exists() and not (source / _PROCESSOR_TEMPLATE).exists():
            write_json(target / _PROCESSOR_TEMPLATE, {"chat_template": found[0]})
        return
    why = "has a chat template that cannot show pictures" if found else "has no chat template"
    log.warning("the tokenizer in %s %s; Qwen2-VL's conversation format was written instead", source, why)
    (target / _JINJA).unlink(missing_ok=True)
    settings = read_json(source / CONFIG) if (source / CONFIG).is_file() else {}
    write_json(target / CONFIG, settings | {"chat_template": chat_template})
    write_json(target / _PROCESSOR_TEMPLATE, {"chat_template": chat_template})


def _templates(folder: Path) -> Iterator[str]:
    """Every default template that some reader would take from the folder."""
    if (folder / _JINJA).is_file():
        yield (folder / _JINJA).read_text(encoding="utf-8")
    for name in (CONFIG, _PROCESSOR_TEMPLATE):
        value = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(value, list):  # transformers' older form of several named ones
            value = {entry["name"]: entry["template"] for entry in value}.get("default")
        if value:
            yield value if isinstance(value, str) else json.dumps(value)


def generation_config(ids: Mapping[str, int]) -> dict[str, Any]:
    """generation_config.json: stop at the end of a turn or of a text, and take the likeliest token."""
    return {
        "bos_token_id": ids["bos"],
        "eos_token_id": list(dict.fromkeys((ids["eos"], ids["bos"]))),
        "pad_token_id": ids["pad"],
        "do_sample": False,
    }


def preprocessor_config(vision: VisionConfig, min_pixels: int, max_pixels: int) -> dict[str, Any]:
    """preprocessor_config.json. Mean and deviation are CLIP's (notes/peers_and_facts.md 4.2)."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
