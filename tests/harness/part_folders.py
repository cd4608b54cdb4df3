"""Tiny Qwen2 and CLIP folders as transformers saves them, and what a model started from them holds and computes."""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.config import ImageConfig
from data.visual.images import normalisation_table, patchify
from model.attention import Segments
from model.build import build_model
from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.hf_config import hf_config
from model.hf_weights import published_name
from model.vision import VisionTower
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import MODEL, Piece, pieces
from tests.harness.parity import IDS
from train.config import InitConfig
from train.first_weights import first_weights

# CLIP's epsilon, so that layers can be compared; the model of a recipe has 1e-6.
TOWER = replace(MODEL.vision, layernorm_eps=1e-5) if MODEL.vision else VisionConfig(depth=2, embed_dim=64, num_heads=4)
CLIP_MODEL = replace(MODEL, vision=TOWER)


def make_clip(folder: Path, form: str = "tower", seed: int = 1, **changes: Any) -> dict[str, Tensor]:
    """A CLIP folder of TOWER's sizes with everything random. `form`: whole (both towers), tower, or projection.

    Returns the vision tower's tensors, named as CLIPVisionModel names them.
    """
    import transformers as hf

    vision = {
        "hidden_size": TOWER.embed_dim,
        "intermediate_size": TOWER.ffn_size,
        "num_hidden_layers": TOWER.depth,
        "num_attention_heads": TOWER.num_heads,
        "image_size": 56,
        "patch_size": TOWER.patch_size,
        "projection_dim": 16,
    } | changes
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    text |= {"vocab_size": 30, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
    model: Any
    if form == "whole":
        model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    else:
        kind = hf.CLIPVisionModel if form == "tower" else hf.CLIPVisionModelWithProjection
        model = kind(hf.CLIPVisionConfig(**vision))
    _randomise(model, seed)
    model.save_pretrained(folder)
    state = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if not name.startswith("text_model.")}


def make_qwen2(folder: Path, language: LanguageConfig = MODEL.language, seed: int = 2) -> dict[str, Tensor]:
    """A Qwen2 causal LM folder of these sizes with everything random. Returns its tensors."""
    import transformers as hf

    config = hf.Qwen2Config(
        vocab_size=language.vocab_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.ffn_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads,
        num_key_value_heads=language.num_kv_heads,
        max_position_embeddings=language.max_positions,
        rms_norm_eps=language.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
        tie_word_embeddings=language.tie_embeddings,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = hf.Qwen2ForCausalLM(config)
    _randomise(model, seed)
    model.save_pretrained(folder)
    return dict(model.state_dict())


def qwen2_vl_folder(folder: Path, model: ModelConfig, seed: int = 4) -> dict[str, Tensor]:
    """A Qwen2-VL folder of these sizes with everything random. Returns its tensors by their published names."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    made = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(hf_config(model, IDS, torch.float32)))
    _randomise(made, seed)
    made.save_pretrained(folder)
    return {published_name(name): value for name, value in made.state_dict().items()}


def _randomise(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.05, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)


def canonical_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's tensors as the tower's, by rules written here a second time."""
    half = state["embeddings.patch_embedding.weight"] / 2
    found = {"patch_embed.weight": torch.stack((half, half), dim=2).flatten(1)}
    heads = (TOWER.num_heads, TOWER.head_dim)
    for layer in range(TOWER.depth):
        theirs, ours = f"encoder.layers.{layer}", f"blocks.layers.{layer}"
        for kind in ("weight", "bias"):
            fused = [state[f"{theirs}.self_attn.{name}_proj.{kind}"].unflatten(0, heads) for name in "qkv"]
            found[f"{ours}.self_attention.linear_qkv.{kind}"] = torch.stack(fused, dim=1)
            for name, theirs_name in (
                ("input_layernorm", "layer_norm1"),
                ("pre_mlp_layernorm", "layer_norm2"),
                ("self_attention.linear_proj", "self_attn.out_proj"),
                ("mlp.linear_fc1", "mlp.fc1"),
                ("mlp.linear_fc2", "mlp.fc2"),
            ):
                found[f"{ours}.{name}.{kind}"] = state[f"{theirs}.{theirs_name}.{kind}"]
    return {f"vision.{name}": value for name, value in found.items()}


def canonical_language(state: dict[str, Tensor], language: LanguageConfig = MODEL.language) -> dict[str, Tensor]:
    """Qwen2's tensors as the language part's, likewise."""
    found = {
        "embedding.word_embeddings.weight": state["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": state["model.norm.weight"],
    }
    if not language.tie_embeddings:
        found["output_layer.weight"] = state["lm_head.weight"]
    per_group = (language.num_kv_heads, -1, language.head_dim)
    for layer in range(language.num_layers):
        theirs, ours = f"model.layers.{layer}", f"decoder.layers.{layer}"
        for kind in ("weight", "bias"):
            fused = [state[f"{theirs}.self_attn.{name}_proj.{kind}"].unflatten(0, per_group) for name in "qkv"]
            found[f"{ours}.self_attention.linear_qkv.{kind}"] = torch.cat(fused, dim=1)
        found[f"{ours}.mlp.linear_fc1.weight"] = torch.stack(
            [state[f"{theirs}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        )
        for name, theirs_name in (
            ("input_layernorm", "input_layernorm"),
            ("pre_mlp_layernorm", "post_attention_layernorm"),
            ("self_attention.linear_proj", "self_attn.o_proj"),
            ("mlp.linear_fc2", "mlp.down_proj"),
        ):
            found[f"{ours}.{name}.weight"] = state[f"{theirs}.{theirs_name}.weight"]
    return {f"language.{name}": value for name, value in found.items()}


def started(parallel: ParallelConfig, run_dir: Path, init: InitConfig) -> tuple[list[Piece], str]:
    """What this rank holds of CLIP_MODEL once `first_weights` has filled it, and what was printed meanwhile."""
    run: Any = SimpleNamespace(init=init, model=CLIP_MODEL, seed=0, run_dir=str(run_dir))
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        built = build_model(CLIP_MODEL, parallel, groups, torch.float32, CLIP_MODEL.parts)
        with torch.no_grad():
            for parameter in built.module.parameters():
                parameter.fill_(torch.nan)  # whatever is not filled shows
        with redirect_stdout(io.StringIO()) as printed:
            first_weights(run, built, groups, None)
        assert not any(parameter.isnan().any() for parameter in built.module.parameters())
        return pieces(built, groups, lambda p: p.detach()), printed.getvalue()


@dataclass(frozen=True, kw_only=True)
class ClipDifference:
    """Largest differences to transformers' CLIP."""

    patches: float
    """Of a still picture's patch embeddings, by norm, in fp32."""
    patches_in_double: float
    """The same computed in fp64, where summing 1176 products in another order no longer shows; absolute."""
    layers: float
    """Of any layer's output, by norm, in fp32."""


def clip_differences(parallel: ParallelConfig, run_dir: Path, folder: Path) -> ClipDifference | None:
    """This rank's tower against transformers' CLIP; None on a pipeline stage without one.

    Layers get the same hidden states and no rotary turn: what is left of the tower is CLIP's encoder.
    """
    from transformers import CLIPVisionModel

    clip: Any = CLIPVisionModel.from_pretrained(folder).eval()
    run: Any = SimpleNamespace(init=InitConfig(vision=str(folder)), model=CLIP_MODEL, seed=0, run_dir=str(run_dir))
    with model_parallel(parallel, pick_device(), seed=0) as groups, torch.no_grad():
        built = build_model(CLIP_MODEL, parallel, groups, torch.float32, CLIP_MODEL.parts)
        first_weights(run, built, groups, None)
        tower = built.module.chunks[0].vision
        if tower is None:
            return None
        layers = _layer_difference(tower, clip)
        ours, theirs = _patch_embeddings(tower, clip)
        ours_double, theirs_double = _patch_embeddings(tower.double(), clip.double())
        return ClipDifference(
            patches=_relative(ours, theirs),
            patches_in_double=float((ours_double - theirs_double).abs().max()),
            layers=layers,
        )


def _patch_embeddings(tower: VisionTower, clip: Any) -> tuple[Tensor, Tensor]:
    """Ours and CLIP's of one still picture, (24, E), in the weights' dtype."""
    image, table = ImageConfig(), normalisation_table(ImageConfig())
    picture = np.random.default_rng(5).integers(0, 256, (1, 56, 84, 3), dtype=np.uint8)
    patches = np.empty((24, image.patch_dim), dtype=np.float32)
    patchify(picture, image, table, patches)  # the data path's own still picture, in merge-block order
    pixels = np.stack([table[colour][picture[..., colour]] for colour in range(3)], axis=1)
    dtype = tower.patch_embed.weight.dtype
    theirs = clip.embeddings.patch_embedding(torch.from_numpy(pixels).to(dtype))[0]  # (E, 4, 6)
    blocks = theirs.unflatten(1, (2, 2)).unflatten(3, (3, 2)).permute(1, 3, 2, 4, 0).reshape(24, -1)
    return tower.patch_embed(torch.from_numpy(patches).to(dtype)), blocks


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def _layer_difference(tower: VisionTower, clip: Any) -> float:
    hidden = torch.randn(24, 1, TOWER.embed_dim, generator=torch.Generator().manual_seed(3))
    ours: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: ours.append(out[0])) for layer in tower.blocks.layers]
    tower.blocks(hidden, attention_mask=None, packed_seq_params=Segments(lengths=(24,)))
    for hook in hooks:
        hook.remove()
    worst, state = 0.0, hidden.transpose(0, 1)
    for layer, mine in zip(clip.encoder.layers, ours, strict=True):
        state = layer(state, None)
        worst = max(worst, _relative(mine.transpose(0, 1), state))
    return worst
