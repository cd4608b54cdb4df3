"""Model sizes to and from Hugging Face `config.json`, and the special token ids that it names."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.json_file import Section

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


def config_from_hf(folder: str | Path, name: str | None = None) -> ModelConfig:
    """The sizes of a Hugging Face model folder.

    Reads the published flat form of Qwen2-VL, the nested form that transformers 5 saves, and plain Qwen2 (a language
    model without vision). Every size must be written in the file: transformers' own defaults for this family differ
    from what was published (rms_norm_eps 1e-5 against 1e-6).

    Raises:
        ValueError: another model family, a missing key, or a variant that this model does not have.
    """
    path = Path(folder) / "config.json"
    whole = Section.of_file(path)
    family = whole.get("model_type")
    if family not in ("qwen2_vl", "qwen2"):
        raise ValueError(f"{path}: model_type is {family!r}; only 'qwen2_vl' and 'qwen2' folders can be read")
    if quantised := whole.get("quantization_config"):
        kind = quantised.get("quant_method", "some kind") if isinstance(quantised, dict) else quantised
        raise ValueError(f"{path}: the weights are quantised ({kind}), which cannot be trained; take the original")
    language = _read_language(whole.section("text_config") or whole, whole, family == "qwen2")
    vision = None
    if family == "qwen2_vl":
        section = whole.section("vision_config")
        if section is None:
            raise ValueError(f"{path}: vision_config is missing, and a qwen2_vl folder is nothing without")
        vision = _read_vision(section)
    return ModelConfig(name=name or Path(folder).resolve().name, language=language, vision=vision)


def _read_language(text: Section, whole: Section, plain: bool) -> LanguageConfig:
    if text.flag("use_sliding_window"):
        raise ValueError(f"{text.named('use_sliding_window')} is true; sliding-window attention is not built here")
    if (activation := text.get("hidden_act")) not in (None, "silu"):
        raise ValueError(f"{text.named('hidden_act')} is {activation!r}; the language model here has SwiGLU (silu)")
    theta, section = _read_rope(text)
    hidden, heads = text.count("hidden_size"), text.count("num_attention_heads")
    head_dim = text.count("head_dim", default=max(1, hidden // heads))
    if section is None and not plain:
        raise ValueError(f"{text.path}: mrope_section is missing; only a plain qwen2 folder may leave it out")
    # Plain Qwen2 has one position a token. Equal ids on all three axes rotate alike whatever the sections are.
    section = section or (head_dim // 2, 0, 0)
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "num_layers": text.count("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": text.count("num_key_value_heads"),
        "ffn_size": text.count("intermediate_size"),
        "vocab_size": text.count("vocab_size"),
        "mrope_section": section,
        # Either ties them in transformers, too.
        "tie_embeddings": whole.flag("tie_word_embeddings") or text.flag("tie_word_embeddings"),
        "max_positions": text.count("max_position_embeddings"),
        "rope_theta": theta,
        "rms_norm_eps": text.number("rms_norm_eps"),
        "head_size": head_dim if text.get("head_dim") and head_dim * heads != hidden else None,
    }
    try:
        return LanguageConfig(**sizes)
    except ValueError as error:
        raise ValueError(f"{text.path}: {error}") from error


def _read_rope(text: Section) -> tuple[float, tuple[int, int, int] | None]:
    """Rotary base and mrope_section.

    transformers 5 writes rope_parameters and published folders rope_scaling. Beside rope_scaling transformers forgets
    all of rope_parameters, so that may only repeat what stands elsewhere. A key that is unknown here may change the
    angles, so it is refused.
    """
    ropes = [rope for key in ("rope_scaling", "rope_parameters") if (rope := text.section(key)) is not None]
    for rope in ropes:
        for key in ("rope_type", "type"):
            if (kind := rope.get(key)) not in (None, "default", "mrope"):
                raise ValueError(
                    f"{rope.named(key)} is {kind!r}; of rotary positions 'default' and 'mrope' are built here"
                )
        if unknown := sorted(set(rope.keys()) - {"rope_type", "type", "rope_theta", "mrope_section"}):
            raise ValueError(f"{rope.named(unknown[0])} is {rope.get(unknown[0])!r}, which is not built here")
    with_theta = [one for one in (text, *ropes) if one.get("rope_theta") is not None]
    thetas = {one.named("rope_theta"): one.number("rope_theta") for one in with_theta}
    with_section = [rope for rope in ropes if rope.get("mrope_section") is not None]
    lists = {rope.named("mrope_section"): rope.counts("mrope_section") for rope in with_section}
    for key, found in (("rope_theta", thetas), ("mrope_section", lists)):
        if len(set(found.values())) > 1:
            said = " and ".join(f"{where} is {value}" for where, value in found.items())
            raise ValueError(f"{said}; one {key} must hold")
    beside = " (rope_parameters does not count beside rope_scaling)" if len(ropes) > 1 else ""
    theta = next((thetas[where] for one in (text, *ropes[:1]) if (where := one.named("rope_theta")) in thetas), None)
    if theta is None:
        raise ValueError(f"{text.path}: rope_theta is missing{beside}")
    section = next((lists[where] for one in ropes[:1] if (where := one.named("mrope_section")) in lists), None)
    if section is None and lists:
        raise ValueError(f"{text.path}: mrope_section is missing{beside}")
    if section is not None and len(section) != 3:
        raise ValueError(f"{ropes[0].named('mrope_section')} is {list(section)}; three are needed: time, height, width")
    return theta, None if section is None else (section[0], section[1], section[2])


def _read_vision(vision: Section) -> VisionConfig:
    if (activation := vision.get("hidden_act")) not in (None, "quick_gelu"):
        raise ValueError(f"{vision.named('hidden_act')} is {activation!r}; the tower here has quick_gelu")
    sizes = {
        name: vision.count(name)
        for name in ("depth", "embed_dim", "num_heads", "mlp_ratio", "patch_size", "spatial_merge_size")
    }
    # Published folders leave the temporal size out; the family has no other.
    sizes["temporal_patch_size"] = vision.count("temporal_patch_size", default=2)
    sizes["in_channels"] = vision.count("in_channels", default=vision.count("in_chans", default=3))
    try:
        return VisionConfig(**sizes, layernorm_eps=HF_VISION_EPS)
    except ValueError as error:
        raise ValueError(f"{vision.path}: {error}") from error


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
    # How far positions may go is no weight's matter.
    free = {"max_positions", "tie_embeddings"} | ({"mrope_section"} if theirs.vision is None else set())
    wrong = [
        f"model.{part}.{field.name} is {getattr(found, field.name, None)} there and {getattr(ours, field.name)} here"
        for part, found, ours in pairs
        for field in fields(ours)
        if field.name not in free and getattr(found, field.name, None) != getattr(ours, field.name)
    ]
    ties, tied = theirs.language.tie_embeddings, config.language.tie_embeddings
    if "language" in taken and ties != tied:
        has = "ties its head to the embedding" if ties else "has a head of its own"
        wrong.append(
            f"by its config it {has} (tie_word_embeddings={str(ties).lower()}) and model.language.tie_embeddings is "
            f"{str(tied).lower()}; set it to {str(ties).lower()}"
        )
    if wrong:
        raise ValueError(f"{folder} is another model than {config.name}: {'; '.join(wrong)}")


def declared_ids(folder: str | Path) -> dict[str, int]:
    """Special token ids that a folder's config.json declares, by the names data.tokenizer.TokenIds gives them."""
    whole = Section.of_file(Path(folder) / "config.json")
    names = {
        "image_token_id": "image_pad",
        "video_token_id": "video_pad",
        "vision_start_token_id": "vision_start",
        "vision_end_token_id": "vision_end",
    }
    return {name: whole.count(key, least=0) for key, name in names.items() if whole.get(key) is not None}


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
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error
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
