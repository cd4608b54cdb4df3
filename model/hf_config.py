"""Model sizes to and from Hugging Face `config.json`, and the special token ids that it names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from model.config import LanguageConfig, ModelConfig, VisionConfig

# The roles that config.json names, by the string that plays each in a Qwen2-VL tokenizer. Ids are looked up.
SPECIAL_TOKENS = {
    "bos": "<|endoftext|>",
    "eos": "<|im_end|>",
    "pad": "<|endoftext|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
}
# Published configs name this one too. No text or picture is made of it, so a tokenizer may lack it.
_OPTIONAL_TOKENS = {"vision_pad": "<|vision_pad|>"}
# transformers writes these into its modules, so a model that differs cannot be told to it.
HF_VISION_EPS = 1e-6


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object; ValueError naming the file when it is absent or is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """One JSON object as these folders have them: indented, UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def config_from_hf(folder: str | Path, name: str | None = None) -> ModelConfig:
    """The sizes of a Hugging Face model folder.

    Reads the published flat form of Qwen2-VL, the nested form that transformers 5 saves, and plain Qwen2 (a language
    model without vision). Every size must be written in the file: transformers' own defaults for this family differ
    from what was published (rms_norm_eps 1e-5 against 1e-6).

    Raises:
        ValueError: another model family, a missing key, or a variant that this model does not have.
    """
    path = Path(folder) / "config.json"
    whole = read_json(path)
    family = whole.get("model_type")
    if family not in ("qwen2_vl", "qwen2"):
        raise ValueError(f"{path}: model_type is {family!r}; only 'qwen2_vl' and 'qwen2' folders can be read")
    if whole.get("quantization_config"):
        kind = whole["quantization_config"].get("quant_method", "some kind")
        raise ValueError(f"{path}: the weights are quantised ({kind}), which cannot be trained; take the original")
    text = whole.get("text_config") or whole
    language = _read_language(text, whole, path)
    vision = _read_vision(whole["vision_config"], path) if family == "qwen2_vl" else None
    return ModelConfig(name=name or Path(folder).resolve().name, language=language, vision=vision)


def _need(section: Mapping[str, Any], key: str, path: Path) -> Any:
    if section.get(key) is None:
        raise ValueError(f"{path}: {key} is missing; it must be written out, a default could silently be wrong")
    return section[key]


def _read_language(text: Mapping[str, Any], whole: Mapping[str, Any], path: Path) -> LanguageConfig:
    if text.get("use_sliding_window"):
        raise ValueError(f"{path}: use_sliding_window is true; sliding-window attention is not built here")
    if text.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: hidden_act is {text['hidden_act']!r}; the language model here has SwiGLU (silu)")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"{path}: rotary positions of type {kind!r} are not built here; 'default' and 'mrope' are")
    theta = rope.get("rope_theta", text.get("rope_theta"))
    if theta is None:
        raise ValueError(f"{path}: rope_theta is missing")
    heads = _need(text, "num_attention_heads", path)
    head_size = text.get("head_dim")
    head_dim = head_size or _need(text, "hidden_size", path) // heads
    # Plain Qwen2 has one position a token. Equal ids on all three axes rotate alike whatever the sections are.
    section = rope.get("mrope_section") or (head_dim // 2, 0, 0)
    return LanguageConfig(
        hidden_size=_need(text, "hidden_size", path),
        num_layers=_need(text, "num_hidden_layers", path),
        num_heads=heads,
        num_kv_heads=_need(text, "num_key_value_heads", path),
        ffn_size=_need(text, "intermediate_size", path),
        vocab_size=_need(text, "vocab_size", path),
        mrope_section=(section[0], section[1], section[2]),
        tie_embeddings=bool(whole.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        max_positions=_need(text, "max_position_embeddings", path),
        rope_theta=float(theta),
        rms_norm_eps=float(_need(text, "rms_norm_eps", path)),
        head_size=head_size if head_size and head_size * heads != text["hidden_size"] else None,
    )


def _read_vision(vision: Mapping[str, Any], path: Path) -> VisionConfig:
    if vision.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise ValueError(f"{path}: vision hidden_act is {vision['hidden_act']!r}; the tower here has quick_gelu")
    return VisionConfig(
        depth=_need(vision, "depth", path),
        embed_dim=_need(vision, "embed_dim", path),
        num_heads=_need(vision, "num_heads", path),
        mlp_ratio=_need(vision, "mlp_ratio", path),
        patch_size=_need(vision, "patch_size", path),
        # Published folders leave the temporal size out; the family has no other.
        temporal_patch_size=vision.get("temporal_patch_size", 2),
        spatial_merge_size=_need(vision, "spatial_merge_size", path),
        in_channels=vision.get("in_channels", vision.get("in_chans", 3)),
        layernorm_eps=HF_VISION_EPS,
    )


def check_sizes(folder: str | Path, config: ModelConfig, parts: Sequence[str] | None = None) -> None:
    """Refuse a folder that computes something else than `config`: heads, rotary base and epsilon show in no shape.

    Args:
        parts: which of vision, merger, language are taken from the folder; None is all that `config` has.

    Raises:
        ValueError: each value that differs, the folder's first.
    """
    theirs = config_from_hf(folder, config.name)
    taken = config.parts if parts is None else parts
    pairs: list[tuple[str, Any, Any]] = []
    if "language" in taken:
        pairs.append(("language", theirs.language, config.language))
    if {"vision", "merger"} & set(taken):
        pairs.append(("vision", theirs.vision, config.vision))
    # How far positions may go is no weight's matter, and a head of its own shows as a tensor.
    free = {"max_positions", "tie_embeddings"} | ({"mrope_section"} if theirs.vision is None else set())
    wrong = [
        f"model.{part}.{field.name} is {getattr(found, field.name, None)} there and {getattr(ours, field.name)} here"
        for part, found, ours in pairs
        for field in fields(ours)
        if field.name not in free and getattr(found, field.name, None) != getattr(ours, field.name)
    ]
    if wrong:
        raise ValueError(f"{folder} is another model than {config.name}: {'; '.join(wrong)}")


def declared_ids(folder: str | Path) -> dict[str, int]:
    """Special token ids that a folder's config.json declares, by the names data.tokenizer.TokenIds gives them."""
    whole = read_json(Path(folder) / "config.json")
    names = {
        "image_token_id": "image_pad",
        "video_token_id": "video_pad",
        "vision_start_token_id": "vision_start",
        "vision_end_token_id": "vision_end",
    }
    return {name: int(whole[key]) for key, name in names.items() if key in whole}


def special_ids(tokenizer_folder: str | Path) -> dict[str, int]:
    """Ids of `SPECIAL_TOKENS`, and of `vision_pad` if it is there, in a Hugging Face tokenizer folder.

    Raises:
        ValueError: names each that the tokenizer lacks.
    """
    from tokenizers import Tokenizer

    path = Path(tokenizer_folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; a Hugging Face folder needs the tokenizer that the model was trained with"
        )
    tokenizer = Tokenizer.from_file(str(path))
    found = {role: tokenizer.token_to_id(token) for role, token in (SPECIAL_TOKENS | _OPTIONAL_TOKENS).items()}
    lacking = sorted({token for role, token in SPECIAL_TOKENS.items() if found[role] is None})
    if lacking:
        raise ValueError(f"{path} has no {', '.join(lacking)}; a Qwen2-VL model cannot be described without")
    return {role: number for role, number in found.items() if number is not None}


def hf_config(config: ModelConfig, ids: Mapping[str, int], dtype: torch.dtype) -> dict[str, Any]:
    """config.json in the published flat form.

    Args:
        config: sizes. Without vision the result describes a plain Qwen2 model: the same function on text.
        ids: the roles of `SPECIAL_TOKENS` and their ids.
        dtype: of the weights beside it; transformers loads in this one.

    Raises:
        ValueError: sizes that transformers' Qwen2-VL cannot express, or a special id outside of the vocabulary.
    """
    language = config.language
    if language.head_dim * language.num_heads != language.hidden_size:
        raise ValueError(
            f"transformers' Qwen2-VL fixes the head at hidden_size / num_heads = {language.hidden_size} / "
            f"{language.num_heads}; a head of {language.head_dim} cannot be exported"
        )
    outside = {role: number for role, number in ids.items() if number >= language.vocab_size}
    if outside:
        raise ValueError(f"special token ids {outside} lie outside of the model's vocabulary of {language.vocab_size}")
    result: dict[str, Any] = {
        "architectures": ["Qwen2VLForConditionalGeneration" if config.vision else "Qwen2ForCausalLM"],
        "model_type": "qwen2_vl" if config.vision else "qwen2",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": language.ffn_size,
        "max_position_embeddings": language.max_positions,
        # What follows from use_sliding_window being false; older readers look for all three.
        "max_window_layers": language.num_layers,
        "sliding_window": language.max_positions,
        "num_attention_heads": language.num_heads,
        "num_hidden_layers": language.num_layers,
        "num_key_value_heads": language.num_kv_heads,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_theta": language.rope_theta,
        "tie_word_embeddings": language.tie_embeddings,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": language.vocab_size,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
    }
    if config.vision is not None:
        result |= _vision_keys(config.vision, language, ids)
    return result


def _vision_keys(vision: VisionConfig, language: LanguageConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    if vision.layernorm_eps != HF_VISION_EPS:
        raise ValueError(
            f"model.vision.layernorm_eps is {vision.layernorm_eps:g}; transformers' Qwen2-VL has {HF_VISION_EPS:g} "
            "written into its code, so the exported model would compute something else"
        )
    optional = {"vision_token_id": ids["vision_pad"]} if "vision_pad" in ids else {}
    return optional | {
        "rope_scaling": {"type": "mrope", "mrope_section": list(language.mrope_section)},
        "vision_start_token_id": ids["vision_start"],
        "vision_end_token_id": ids["vision_end"],
        "image_token_id": ids["image"],
        "video_token_id": ids["video"],
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": vision.depth,
            "embed_dim": vision.embed_dim,
            "hidden_size": language.hidden_size,
            "hidden_act": "quick_gelu",
            "mlp_ratio": vision.mlp_ratio,
            "num_heads": vision.num_heads,
            "in_channels": vision.in_channels,
            "in_chans": vision.in_channels,
            "patch_size": vision.patch_size,
            "spatial_patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        },
    }
