"""Starting from parts, and what learns how fast: rows of items 3 and 9 of the model proof."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from tests.harness.compare import assemble
from tests.harness.layouts import Piece
from tests.harness.part_folders import (
    CLIP_MODEL,
    TOWER,
    canonical_language,
    canonical_tower,
    clip_differences,
    make_clip,
    make_qwen2,
    started,
)
from tests.harness.updates import Updates, check_updates, one_step
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context
from train.config import InitConfig
from train.first_weights import REPORT

LIMIT = 1e-6
START_LAYOUTS = ("one process", "TP2", "PP2")


def parts_cases() -> dict[str, Case]:
    """Every case by its key."""
    cases = {f"parts/clip/{layout}": _clip(layout) for layout in START_LAYOUTS}
    cases |= {f"parts/start/{layout}": _start(layout) for layout in START_LAYOUTS}
    cases |= {f"parts/rates/{layout}": _rates(layout) for layout in START_LAYOUTS}
    return cases


def _clip(layout: str) -> Case:
    names = (
        f"{layout}: a still picture's patch embeddings against CLIP's, fp32",
        f"{layout}: the same in fp64, largest value",
        f"{layout}: layers against CLIP's, given the same hidden states",
    )

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        folder = context.scratch / f"clip {layout}"
        make_clip(folder)
        ranks = context.run(size, clip_differences, parallel=parallel, run_dir=folder / "run", folder=folder)
        found = [rank for rank in ranks if rank is not None]
        values = (
            max(rank.patches for rank in found),
            max(rank.patches_in_double for rank in found),
            max(rank.layers for rank in found),
        )
        limits = (LIMIT, 1e-12, LIMIT)
        units = ("relative", "absolute", "relative")
        return [
            Cell(name=name, measured=value, limit=limit, unit=unit)
            for name, value, limit, unit in zip(names, values, limits, units, strict=True)
        ]

    return Case(item=3, names=names, run=run)


def _start(layout: str) -> Case:
    names = (
        f"{layout}: tower's tensors that are not the CLIP folder's, fused",
        f"{layout}: language tensors that are not the Qwen2 folder's, fused",
        f"{layout}: merger's tensors that are not new, or not the same as on one process",
        f"{layout}: tensors of the folders that were neither taken nor listed as dropped",
    )

    def run(context: Context) -> list[Cell]:
        folder = context.scratch / f"start {layout}"
        tower = canonical_tower(make_clip(folder / "clip", "whole"))
        language = canonical_language(make_qwen2(folder / "qwen2"))
        init = InitConfig(language=str(folder / "qwen2"), vision=str(folder / "clip"))
        held = _held(context, layout, folder / "run", init)
        alone = held if layout == "one process" else _held(context, "one process", folder / "alone", init)
        expected = {name: value.numpy() for name, value in (tower | language).items()}
        merger = {n: v for n, v in assemble(alone).items() if n.startswith("merger.")}
        weights = assemble(held, expected | merger)
        values = (
            (_other(weights, tower), f"of {len(tower)} tensors"),
            (_other(weights, language), f"of {len(language)} tensors"),
            (_not_new(weights, merger), f"of {len(merger)} tensors"),
            _unlisted(folder),
        )
        return [
            Cell(name=name, measured=value, limit=0, unit=unit)
            for name, (value, unit) in zip(names, values, strict=True)
        ]

    return Case(item=3, names=names, run=run)


def _held(context: Context, layout: str, run_dir: Path, init: InitConfig) -> list[list[Piece]]:
    size, parallel = LAYOUTS[layout]
    return [pieces for pieces, _ in context.run(size, started, parallel=parallel, run_dir=run_dir, init=init)]


def _other(weights: dict[str, np.ndarray], expected: dict[str, Tensor]) -> int:
    absent = [name for name in expected if name not in weights]
    return len(absent) + sum(
        not np.array_equal(weights[name], value.numpy()) for name, value in expected.items() if name in weights
    )


def _not_new(weights: dict[str, np.ndarray], alone: dict[str, np.ndarray]) -> int:
    """Norms at 1, biases at 0, matrices of the recipe's deviation, and the same bits on every layout."""

    def is_new(name: str) -> bool:
        value = weights[name]
        if name.endswith(".bias"):
            return not value.any()
        return bool((value == 1).all()) if "norm" in name else abs(float(value.std()) - 0.02) < 2e-3

    return sum(not is_new(name) or not np.array_equal(weights[name], value) for name, value in alone.items())


def _unlisted(folder: Path) -> tuple[int, str]:
    """By the saved report, against what our model can have taken of each folder."""
    told = json.loads((folder / "run" / REPORT).read_text())["sources"]
    dropped = {entry["source"]: set(entry["dropped"]) for entry in told}
    clip, qwen2 = (set(load_file(folder / name / "model.safetensors")) for name in ("clip", "qwen2"))
    # 16 tensors a layer and the convolution have a place; every other one is lost, whatever its name.
    taken = {name for name in clip if name.startswith("vision_model.encoder.layers.")}
    taken |= {name for name in clip if name.endswith("patch_embedding.weight")}
    assert len(taken) == 16 * TOWER.depth + 1 and len(qwen2) == 12 * CLIP_MODEL.language.num_layers + 2
    return len((clip - taken) ^ dropped["vision"]) + len(dropped["language"]), f"of {len(clip) + len(qwen2)} tensors"


def _rates(layout: str) -> Case:
    names = (
        f"{layout}: tensors whose update is not that of their layer's rate and decay by hand",
        f"{layout}: norms and biases that were decayed",
        f"{layout}: frozen tensors with other bytes after the step",
    )

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        stages = [check_updates(context.run(size, one_step, parallel=parallel, stage=f"stage{n}")) for n in (1, 2, 3)]
        fields: tuple[Callable[[Updates], list[str]], ...] = (
            lambda found: found.wrong,
            lambda found: found.decayed_vectors,
            lambda found: found.moved_frozen,
        )
        unit = f"of {sum(found.looked_at for found in stages)} tensors"
        return [
            Cell(name=name, measured=sum(len(field(found)) for found in stages), limit=0, unit=unit)
            for name, field in zip(names, fields, strict=True)
        ]

    return Case(item=9, names=names, run=run)
