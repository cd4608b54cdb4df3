"""The vision tower out of a CLIP folder (CLIP, DFN) in transformers' form.

CLIP's tower and ours are the same pre-norm transformer. Around it CLIP has what a tower of any picture size cannot use:

    taken     patch convolution (E, 3, 14, 14) -> vision.patch_embed (E, 3 x frames x 14 x 14), each frame a share of it
              layer_norm1, layer_norm2, q/k/v (fused), out_proj, fc1, fc2 of every layer
    dropped   class token, fixed position embeddings, pre_layrnorm, post_layernorm, projection; the text tower

A still picture is two equal frames, so equal shares of the convolution add up to what CLIP's gives.
Source: transformers `models/clip/modeling_clip.py`; the name `pre_layrnorm` is spelt so there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import ModelConfig, VisionConfig
from model.hf_read import PieceReader, refuse
from model.hf_weights import Piece
from model.json_file import Section
from model.part_folder import PartFolder, left_behind
from model.tensor_folder import TensorFolder

ACTIVATION = "quick_gelu"
_PREFIX = "vision_model."
# transformers writes only what differs from these (CLIPVisionConfig), at least in some of its versions.
_SIZES = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "patch_size": 32,
}
_TOWER_DROPPED = ("embeddings.class_embedding", "embeddings.position_", "pre_layrnorm.", "post_layernorm.")
_WHOLE_DROPPED = ("visual_projection.", "text_model.", "text_projection.", "logit_scale")
_LINEAR = (
    ("self_attention.linear_proj", "self_attn.out_proj"),
    ("mlp.linear_fc1", "mlp.fc1"),
    ("mlp.linear_fc2", "mlp.fc2"),
)


def open_clip(folder: str | Path, config: ModelConfig, accept_activation: str | None = None) -> PartFolder:
    """The vision part out of a CLIPModel, CLIPVisionModel or CLIPVisionModelWithProjection folder.

    Args:
        config: has the tower to fill. Pictures may have had any size: position embeddings are not taken.
        accept_activation: the folder's `hidden_act` where it is not quick_gelu. The tower computes quick_gelu all the
            same, so such a start is approximate.

    Raises:
        ValueError: another kind of model, another activation than accepted, sizes that differ (both values of each),
            tensors that are missing, of another shape or unknown (all of them named).
    """
    if config.vision is None:
        raise ValueError(f"{config.name} has no vision tower for {folder} to fill")
    theirs = _read_config(Path(folder) / "config.json")
    _check_sizes(folder, theirs, config.name, config.vision)
    differs = [*_activation(folder, str(theirs["hidden_act"]), accept_activation)]
    if theirs["layer_norm_eps"] != config.vision.layernorm_eps:
        differs.append(f"layer_norm_eps is {theirs['layer_norm_eps']:g} there and {config.vision.layernorm_eps:g} here")
    opened = TensorFolder(folder)
    # CLIPVisionModel of transformers 5 saves its tower without the prefix that every other form has.
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in opened.names()) else ""
    table = clip_pieces(config.vision, prefix)
    reader = PieceReader(opened, table)
    dropped = left_behind(opened, table)
    expected = (*(prefix + name for name in _TOWER_DROPPED), *_WHOLE_DROPPED)
    strange = [f"no place for {name} {opened.shape(name)}" for name in dropped if not name.startswith(expected)]
    refuse(folder, config, reader.problems() + strange)
    return PartFolder(reader=reader, dropped=dropped, differs=tuple(differs))


def clip_pieces(vision: VisionConfig, prefix: str = _PREFIX) -> dict[str, tuple[Piece, ...]]:
    """Canonical name -> the pieces of CLIP tensors that make it."""
    width, heads = vision.embed_dim, vision.num_heads
    convolution = (width, vision.in_channels, vision.patch_size, vision.patch_size)
    pieces: dict[str, tuple[Piece, ...]] = {
        "vision.patch_embed.weight": (
            Piece(
                hf_name=f"{prefix}embeddings.patch_embedding.weight",
                hf_shape=convolution,
                shape=(width, vision.patch_dim),
                rows=width,
                frames=vision.temporal_patch_size,
            ),
        )
    }
    shapes = {"mlp.linear_fc1": (vision.ffn_size, width), "mlp.linear_fc2": (width, vision.ffn_size)}
    for layer in range(vision.depth):
        ours, theirs = f"vision.blocks.layers.{layer}", f"{prefix}encoder.layers.{layer}"
        for kind, tail in (("weight", (width,)), ("bias", ())):
            for norm, name in (("input_layernorm", "layer_norm1"), ("pre_mlp_layernorm", "layer_norm2")):
                pieces[f"{ours}.{norm}.{kind}"] = (_same(f"{theirs}.{name}.{kind}", (width,)),)
            pieces[f"{ours}.self_attention.linear_qkv.{kind}"] = tuple(
                Piece(
                    hf_name=f"{theirs}.self_attn.{name}_proj.{kind}",
                    hf_shape=(width, *tail),
                    shape=(heads, 1, vision.head_dim, *tail),
                    dim=1,
                    start=start,
                    rows=width,
                )
                for start, name in enumerate(("q", "k", "v"))
            )
            for name, theirs_name in _LINEAR:
                shape = shapes.get(name, (width, width))
                stored = shape if kind == "weight" else shape[:1]
                pieces[f"{ours}.{name}.{kind}"] = (_same(f"{theirs}.{theirs_name}.{kind}", stored),)
    return pieces


def _same(name: str, shape: tuple[int, ...]) -> Piece:
    return Piece(hf_name=name, hf_shape=shape, shape=shape, rows=shape[0])


def _read_config(path: Path) -> Mapping[str, Any]:
    whole = Section.of_file(path)
    family = whole.get("model_type")
    if family not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"{path}: model_type is {family!r}; init.vision takes CLIP folders of transformers "
            "('clip' or 'clip_vision_model'), a Qwen2-VL folder goes to init.from_hf"
        )
    vision = whole.section("vision_config") or Section({}, path) if family == "clip" else whole
    sizes: dict[str, Any] = {key: vision.count(key, default=value) for key, value in _SIZES.items()}
    return sizes | {
        "hidden_act": vision.get("hidden_act") or ACTIVATION,
        "layer_norm_eps": vision.number("layer_norm_eps", default=1e-5),
    }


def _check_sizes(folder: str | Path, theirs: Mapping[str, Any], name: str, ours: VisionConfig) -> None:
    pairs = {
        "hidden_size": ("embed_dim", ours.embed_dim),
        "num_hidden_layers": ("depth", ours.depth),
        "num_attention_heads": ("num_heads", ours.num_heads),
        "intermediate_size": ("embed_dim x mlp_ratio", ours.ffn_size),
        "patch_size": ("patch_size", ours.patch_size),
        "num_channels": ("in_channels", ours.in_channels),
    }
    wrong = [
        f"{key} is {theirs[key]} there and model.vision.{field} is {value} here"
        for key, (field, value) in pairs.items()
        if theirs[key] != value
    ]
    if wrong:
        raise ValueError(f"{folder} is another tower than that of {name}: {'; '.join(wrong)}")


def _activation(folder: str | Path, theirs: str, accepted: str | None) -> list[str]:
    if accepted is not None and accepted != theirs:
        raise ValueError(f"init.accept_activation is {accepted!r} but {folder} has hidden_act {theirs!r}")
    if theirs == ACTIVATION:
        return []
    if accepted is None:
        raise ValueError(
            f"{folder} was trained with hidden_act {theirs!r} and the tower here computes {ACTIVATION}; to start from "
            f"it all the same, approximately, set init.accept_activation={theirs}"
        )
    return [f"hidden_act is {theirs} there and {ACTIVATION} here"]
