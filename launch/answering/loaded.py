"""A model ready to answer, in transformers, from a run's checkpoint or from a Hugging Face folder.

A checkpoint needs no exported folder: its tensors are read one by one and become the parameters themselves, so the
weights are held once, plus one tensor. Every tensor is asked for by name: transformers' own `from_pretrained` would
draw what a folder lacks at random, with a warning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.config import ImageConfig, VideoConfig
from data.encoding.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from launch.checkpoints.export import run_of
from model.config import ModelConfig, VisionConfig
from model.hf_config import config_from_hf, declared_ids, hf_config, special_ids
from model.hf_read import open_hf
from model.hf_weights import common_dtype, hf_pieces, in_memory_name, to_hf
from model.json_file import Section
from train.checkpoint.commits import attempts
from train.checkpoint.load import find_commit, read_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model in eval mode with all that its prompts need."""

    path: Path
    """The checkpoint or folder that was read."""
    model: Any
    """Qwen2VLForConditionalGeneration, or Qwen2ForCausalLM for a model without vision."""
    config: ModelConfig
    tokenizer: Tokenizer
    end: tuple[int, ...]
    """Ids that end an answer."""
    image: ImageConfig = field(default_factory=ImageConfig)
    video: VideoConfig = field(default_factory=VideoConfig)


def load(where: str | Path, device: str | None = None, tokenizer: str | Path | None = None) -> Loaded:
    """Load the newest usable checkpoint of a run, one checkpoint, or a Hugging Face folder.

    The model has the dtype of most of the stored weights, which an exported config.json names as well.

    Opening a checkpoint reads all of it once for the digests, optimizer state included, as an export does.

    Args:
        device: cpu or cuda; None takes the GPU where there is one.
        tokenizer: its folder, if it is not where the recipe says or not beside the weights.

    Raises:
        ValueError: nothing to load there, a part is missing, or tokenizer and model do not belong together.
    """
    where = Path(where)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; leave --device out, or say --device cpu")
    if not where.is_dir():
        raise ValueError(f"{where} is no folder; name a run, one of its checkpoints, or a Hugging Face folder")
    if (where / "config.json").is_file():
        return _from_folder(where, device, tokenizer)
    if not attempts(where):
        raise ValueError(
            f"{where} holds neither checkpoints nor a config.json; name a run, one of its checkpoints, or a Hugging "
            "Face folder"
        )
    return _from_commit(where, device, tokenizer)


def _from_commit(where: Path, device: str, tokenizer_folder: str | Path | None) -> Loaded:
    commit = find_commit(where)
    run = run_of(commit)
    folder = tokenizer_folder if tokenizer_folder is not None else run.data.tokenizer
    tokenizer = _tokenizer(folder, run.model, {})
    reader = read_tensors(commit.path)
    dtype = common_dtype(run.model, reader.dtype)
    return Loaded(
        path=commit.path,
        model=_build(run.model, special_ids(folder), reader.read, dtype, device),
        config=run.model,
        tokenizer=tokenizer,
        end=_ends(commit.path, tokenizer),
        image=run.data.image,
        video=replace(run.data.video, cache_dir=None),  # a question leaves no files behind
    )


def _from_folder(where: Path, device: str, tokenizer_folder: str | Path | None) -> Loaded:
    folder = tokenizer_folder if tokenizer_folder is not None else where
    config = config_from_hf(where)
    tokenizer = _tokenizer(folder, config, declared_ids(where))
    reader = open_hf(where, config)
    model = _build(config, special_ids(folder), reader.read, common_dtype(config, reader.dtype), device)
    image = _image_limits(where, config.vision) if config.vision is not None else ImageConfig()
    # No file of the folder speaks of clips: a frame is shown no larger than a picture may be.
    usual = VideoConfig()
    video = VideoConfig(
        min_pixels=min(usual.min_pixels, image.max_pixels), max_pixels=min(usual.max_pixels, image.max_pixels)
    )
    return Loaded(
        path=where,
        model=model,
        config=config,
        tokenizer=tokenizer,
        end=_ends(where, tokenizer),
        image=image,
        video=video,
    )


def _tokenizer(folder: str | Path, config: ModelConfig, declared: Mapping[str, int]) -> Tokenizer:
    if not (Path(folder) / "tokenizer.json").is_file():
        raise ValueError(f"no tokenizer.json in {folder}; name the tokenizer's folder with --tokenizer")
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, config.language.vocab_size, declared)
    return tokenizer


def _build(
    config: ModelConfig, ids: Mapping[str, int], read: Callable[[str], Tensor], dtype: torch.dtype, device: str
) -> Any:
    import transformers  # seconds to import; the command line starts without it

    described = hf_config(config, ids, dtype)
    with torch.device("meta"):
        if config.vision is not None:
            settings: Any = transformers.Qwen2VLConfig.from_dict(described)
            model: Any = transformers.Qwen2VLForConditionalGeneration(settings)
        else:
            settings = transformers.Qwen2Config.from_dict(described)
            model = transformers.Qwen2ForCausalLM(settings)
    # A plain Qwen2 keeps the published names in memory, too.
    rename = in_memory_name if config.vision is not None else str
    state: dict[str, Tensor] = {}
    for name, pieces in hf_pieces(config).items():
        for key, tensor in to_hf(pieces, read(name)).items():
            state[rename(key)] = tensor.to(device=device, dtype=dtype)
    found = model.load_state_dict(state, strict=False, assign=True)  # assign: they become the parameters, no copy
    model.tie_weights()
    lacking = sorted(set(found.missing_keys) - ({"lm_head.weight"} if config.language.tie_embeddings else set()))
    assert not (lacking or found.unexpected_keys), (lacking, found.unexpected_keys)
    _make_tables(model, device)
    return model.eval().requires_grad_(False)


def _make_tables(model: nn.Module, device: str) -> None:
    """Compute the rotary tables, which no checkpoint holds and which the meta device only described."""
    described = [
        (name, module)
        for name, module in model.named_modules()
        if any(buffer.is_meta for buffer in module.buffers(recurse=False))
    ]
    for name, module in described:
        kind: Any = type(module)
        model.set_submodule(name, kind(module.config).to(device))
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, left


def _image_limits(folder: Path, vision: VisionConfig) -> ImageConfig:
    """The picture budget of preprocessor_config.json, in either generation's words; the family's when it has none."""
    path, nested = folder / "preprocessor_config.json", folder / "processor_config.json"
    said = Section.of_file(path) if path.is_file() else Section({}, path)
    if not said.keys() and nested.is_file():  # transformers 5 writes the whole processor into one file
        said = Section.of_file(nested).section("image_processor") or said
    size = said.section("size") or Section({}, path)
    usual = ImageConfig()
    least = said.count("min_pixels", default=size.count("shortest_edge", default=usual.min_pixels))
    most = said.count("max_pixels", default=size.count("longest_edge", default=usual.max_pixels))
    try:
        return ImageConfig(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            min_pixels=least,
            max_pixels=most,
        )
    except ValueError as error:
        raise ValueError(f"{said.path}: {error}") from error


def _ends(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What generation_config.json stops at, and the tokenizer's ends: after those the template has nothing to say."""
    path = folder / "generation_config.json"
    said = Section.of_file(path) if path.is_file() else Section({}, path)
    value = said.get("eos_token_id")
    if value is None:
        listed: tuple[int, ...] = ()
    else:
        listed = said.counts("eos_token_id") if isinstance(value, list) else (said.count("eos_token_id", least=0),)
    return tuple(sorted({*listed, tokenizer.ids.im_end, tokenizer.ids.end_of_text}))
