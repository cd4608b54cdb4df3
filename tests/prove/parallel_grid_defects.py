"""Defects for tests/prove/parallel_grid.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.prove import step_defects
from tests.prove.planting import Mend, replace_name


def recompute_without_gradient() -> Mend:
    """The input of layers that are computed again wants no gradient."""
    from megatron.core.transformer.transformer_block import TransformerBlock

    def make(checkpointed: Any) -> Any:
        def planted(self: Any, hidden_states: Any, *arguments: Any, **keywords: Any) -> Any:
            return checkpointed(self, hidden_states.detach(), *arguments, **keywords)

        return planted

    return replace_name(TransformerBlock, "_checkpointed_forward", make)


def recompute_ignored() -> Mend:
    """Nothing is computed again, whatever the recipe says."""
    import model.layers

    return replace_name(model.layers, "_RECOMPUTE", lambda table: dict.fromkeys(table, table["none"]))


def chunks_in_a_row() -> Mend:
    """A pipeline stage's chunks hold layers that follow each other, as if stages did not take turns."""
    import model.build

    def make(canonical_boxes: Any) -> Any:
        def planted(module: Any, config: Any, parallel: Any, groups: Any) -> Any:
            boxes = canonical_boxes(module, config, parallel, groups)
            per_piece = config.language.num_layers // parallel.num_pieces
            return {name: _in_a_row(box, per_piece, parallel) for name, box in boxes.items()}

        return planted

    return replace_name(model.build, "canonical_boxes", make)


def _in_a_row(box: Any, per_piece: int, parallel: Any) -> Any:
    part, words, layers, number, *rest = [*box.name.split("."), "", "", ""]
    if (part, words, layers) != ("language", "decoder", "layers"):
        return box
    piece, within = divmod(int(number), per_piece)
    chunk, stage = divmod(piece, parallel.pipeline)
    moved = (stage * parallel.chunks + chunk) * per_piece + within
    return replace(box, name=".".join([part, words, layers, str(moved), *rest]).rstrip("."))


def padded_patches_in_a_frame() -> Mend:
    """Patches that only pad a row for sequence parallelism belong to its last frame."""
    import model.vision

    def make(segments: Any) -> Any:
        def planted(lengths: tuple[int, ...], **named: Any) -> Any:
            if lengths[-1] < 4:  # no picture of the grid has so few patches in a frame
                lengths = (*lengths[:-2], lengths[-2] + lengths[-1])
            return segments(lengths=lengths, **named)

        return planted

    return replace_name(model.vision, "Segments", make)


def vision_vectors_partial() -> Mend:
    """Under sequence parallelism partial gradients of the vision tower's norms and biases stay partial."""
    import parallel.zero

    def make(finish: Any) -> Any:
        def planted(parameters: Any, *rest: Any) -> None:
            finish([p for p in parameters if p.numel() != 32], *rest)  # the width of the grid's tower

        return planted

    return replace_name(parallel.zero, "finish_model_gradients", make)


def rows_of_one_replica() -> Mend:
    """Every replica trains on the rows of the first."""
    from tests.harness.layouts import GivenBatches

    def make(init: Any) -> Any:
        def planted(self: Any, steps: Any, groups: Any, form: Any) -> None:
            size = groups.dp_size
            init(self, [[row for row in rows[::size] for _ in range(size)] for rows in steps], groups, form)

        return planted

    return replace_name(GivenBatches, "__init__", make)


def cell_forgotten() -> Mend:
    """The grid leaves out interleaving over 4 pipeline stages with sequence parallelism."""
    import tests.harness.grid

    def make(layouts: Any) -> Any:
        return lambda: [found for found in layouts() if found[2:] != (4, True, 2)]

    return replace_name(tests.harness.grid, "_layouts", make)


def recompute_not_cycled() -> Mend:
    """The grid recomputes alike in all stages and layouts."""
    import tests.harness.grid

    return replace_name(tests.harness.grid, "RECOMPUTE", lambda words: words[:1])


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "recompute_without_gradient": (recompute_without_gradient, ("grid/DP1xTP2xPP1/stage2",)),
    "recompute_ignored": (recompute_ignored, ("grid/recompute",)),
    "chunks_in_a_row": (chunks_in_a_row, ("grid/DP1xTP1xPP2 interleaved/stage2",)),
    "tied_reduction_interleaved": (step_defects.tied_reduction, ("grid/DP1xTP1xPP2 interleaved/stage2",)),
    "sequence_parallel_reduction_4": (step_defects.sequence_parallel_reduction, ("grid/DP1xTP4xPP1+SP/stage2",)),
    "vision_vectors_partial": (vision_vectors_partial, ("grid/DP1xTP2xPP1+SP/stage1",)),
    "padded_patches_in_a_frame": (padded_patches_in_a_frame, ("grid/DP1xTP2xPP1+SP/stage3",)),
    "dp_scale_4": (step_defects.dp_scale, ("grid/DP4xTP1xPP1/stage1",)),
    "rows_of_one_replica": (rows_of_one_replica, ("grid/DP2xTP1xPP1/stage3",)),
    "cell_forgotten": (cell_forgotten, ("grid/complete",)),
    "recompute_not_cycled": (recompute_not_cycled, ("grid/complete",)),
}
