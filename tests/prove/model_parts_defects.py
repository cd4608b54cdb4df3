"""Defects of starting from parts and of optimizer groups. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.prove.planting import Mend, replace_name
from tests.prove.step_defects import frozen_decay


def clip_key_value_swapped() -> Mend:
    """Keys and values change places where CLIP's three projections are fused."""
    import model.clip

    def make(clip_pieces: Any) -> Any:
        def planted(vision: Any, prefix: str = "vision_model.") -> Any:
            swap = {1: 2, 2: 1}
            return {
                name: tuple(replace(piece, start=swap.get(piece.start, piece.start)) for piece in pieces)
                for name, pieces in clip_pieces(vision, prefix).items()
            }

        return planted

    return replace_name(model.clip, "clip_pieces", make)


def clip_heads_split_last() -> Mend:
    """Rows of CLIP's projections are read as (head size, heads)."""
    from model.hf_weights import Piece

    def make(rows_to_entries: Any) -> Any:
        def planted(self: Any, rows: Any) -> Any:
            if ".self_attn.q_proj" in self.hf_name and "encoder" in self.hf_name and len(rows) == self.rows:
                rows = rows.unflatten(0, (self.shape[2], self.shape[0])).transpose(0, 1).flatten(0, 1)
            return rows_to_entries(self, rows)

        return planted

    return replace_name(Piece, "rows_to_entries", make)


def clip_frames_whole() -> Mend:
    """Each frame gets the whole patch convolution: a still picture counts twice."""
    from model.hf_weights import Piece

    def make(rows_to_entries: Any) -> Any:
        def planted(self: Any, rows: Any) -> Any:
            return rows_to_entries(self, rows * self.frames)

        return planted

    return replace_name(Piece, "rows_to_entries", make)


def clip_first_frame_only() -> Mend:
    """The first frame gets all of the patch convolution, the second none: right for stills, wrong for clips."""
    from model.hf_weights import Piece

    def make(rows_to_entries: Any) -> Any:
        def planted(self: Any, rows: Any) -> Any:
            found = rows_to_entries(self, rows)
            if self.frames == 1:
                return found
            spread = found.unflatten(1, (rows.shape[1], self.frames, -1)).clone()
            spread[:, :, 0] *= self.frames
            spread[:, :, 1:] = 0
            return spread.flatten(1)

        return planted

    return replace_name(Piece, "rows_to_entries", make)


def clip_norms_swapped() -> Mend:
    """The two norms of a CLIP layer change places."""
    import model.clip

    def make(clip_pieces: Any) -> Any:
        def planted(vision: Any, prefix: str = "vision_model.") -> Any:
            found = clip_pieces(vision, prefix)
            for name in [name for name in found if ".input_layernorm." in name]:
                other = name.replace("input_layernorm", "pre_mlp_layernorm")
                found[name], found[other] = found[other], found[name]
            return found

        return planted

    return replace_name(model.clip, "clip_pieces", make)


def dropped_untold() -> Mend:
    """What belongs to the text tower goes unmentioned."""
    import model.clip

    def make(left_behind: Any) -> Any:
        return lambda folder, table: tuple(n for n in left_behind(folder, table) if not n.startswith("text_model."))

    return replace_name(model.clip, "left_behind", make)


def merger_by_rank() -> Mend:
    """What is drawn depends on the process that draws it."""
    import train.first_weights

    def make(fill_random: Any) -> Any:
        def planted(parameter: Any, box: Any, seed: int, std: float) -> None:
            import torch.distributed as dist

            fill_random(parameter, box, seed + dist.get_rank(), std)

        return planted

    return replace_name(train.first_weights, "fill_random", make)


def norms_decayed() -> Mend:
    """Norms and biases take weight decay."""
    import train.optimizer

    return replace_name(train.optimizer, "is_vector", lambda _: lambda name: False)


def fused_bias_decayed() -> Mend:
    """The fused query, key and value bias is taken for a matrix, as its canonical box has several dims."""
    import train.optimizer

    def make(is_vector: Any) -> Any:
        return lambda name: is_vector(name) and not name.endswith("linear_qkv.bias")

    return replace_name(train.optimizer, "is_vector", make)


def layer_decay_upside_down() -> Mend:
    """Layers are counted from the wrong end: the first learns fastest."""
    import train.optimizer

    def make(layers_below_last: Any) -> Any:
        def planted(model: Any, name: str) -> int:
            depth = {"vision": model.vision.depth, "language": model.language.num_layers}.get(name.partition(".")[0], 0)
            return depth - layers_below_last(model, name)

        return planted

    return replace_name(train.optimizer, "layers_below_last", make)


def layer_decay_by_local_name() -> Mend:
    """A pipeline stage counts its own layers from 0, and its copy of a tied embedding as the head it is there."""
    import train.optimizer

    def make(param_groups: Any) -> Any:
        def planted(run: Any, model: Any) -> Any:
            # Local names begin with the chunk: chunks.0.language.layers.3 and so on.
            boxes = {local: replace(box, name=local.split(".", 2)[2]) for local, box in model.boxes.items()}
            return param_groups(run, replace(model, boxes=boxes))

        return planted

    return replace_name(train.optimizer, "param_groups", make)


def factors_ignored() -> Mend:
    """Every layer gets the rate of its part."""
    from parallel.zero import ZeroOptimizer

    def make(_: Any) -> Any:
        def planted(self: Any, rates: dict[str, float]) -> None:
            for (part, _factor), group in zip(self._rates, self._zero.param_groups, strict=True):
                group["lr"] = rates[part]

        return planted

    return replace_name(ZeroOptimizer, "set_learning_rates", make)


def part_decay_ignored() -> Mend:
    """Every part takes the optimizer's weight decay."""
    import train.optimizer

    def make(param_groups: Any) -> Any:
        def planted(run: Any, model: Any) -> Any:
            return [
                replace(group, weight_decay=run.optimizer.weight_decay if group.weight_decay else 0.0)
                for group in param_groups(run, model)
            ]

        return planted

    return replace_name(train.optimizer, "param_groups", make)


MODEL_PARTS_PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "clip_key_value_swapped": (clip_key_value_swapped, ("parts/clip/TP2",)),
    "clip_heads_split_last": (clip_heads_split_last, ("parts/clip/one process",)),
    "clip_frames_whole": (clip_frames_whole, ("parts/clip/one process",)),
    "clip_first_frame_only": (clip_first_frame_only, ("parts/start/one process",)),
    "clip_norms_swapped": (clip_norms_swapped, ("parts/clip/one process",)),
    "dropped_untold": (dropped_untold, ("parts/start/one process",)),
    "drawn_by_rank": (merger_by_rank, ("parts/start/TP2",)),
    "norms_decayed": (norms_decayed, ("parts/rates/one process",)),
    "fused_bias_decayed": (fused_bias_decayed, ("parts/rates/TP2",)),
    "layer_decay_upside_down": (layer_decay_upside_down, ("parts/rates/one process",)),
    "layer_decay_by_local_name": (layer_decay_by_local_name, ("parts/rates/PP2",)),
    "factors_ignored": (factors_ignored, ("parts/rates/one process",)),
    "part_decay_ignored": (part_decay_ignored, ("parts/rates/one process",)),
    "frozen_parts_decayed": (frozen_decay, ("parts/rates/PP2",)),
}
"""By name: what breaks a process, and the cases of which at least one has to fail with it."""
