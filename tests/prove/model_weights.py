"""Cases of the model proof for Hugging Face folders: what reading and writing one costs, and that no bit is lost."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from model.hf_weights import in_memory_name
from parallel.config import ParallelConfig
from tests.harness import golden
from tests.harness.compare import compare
from tests.harness.hf_memory import LARGE, ExportCost, export_cost, import_cost, write_large
from tests.harness.parity import IDS
from tests.harness.roundtrip import (
    DTYPES,
    accepted_or_unsaid,
    export_to,
    folders_differ,
    import_and_save,
    import_on,
    logits_error,
    other_bits,
    round_model,
    tied_copies,
    train_on,
    write_random,
    write_tokenizer,
)
from tests.prove.case import Case, Cell
from tests.prove.context import Context

AXES = [(tensor, pipeline) for tensor in (1, 2, 4) for pipeline in (1, 2, 4)]
MEMORY = {"one process": (1, 1), "TP2": (2, 1), "PP2": (1, 2), "TP2xPP2": (2, 2)}
CONVERSIONS = (("bf16", "bf16"), ("fp32", "bf16"), ("bf16", "fp32"))
NOISE = 0.1
"""Of the largest tensor, 49 MB or more: what Python and the allocator take meanwhile, 1 to 3 MB."""
PAGES = 2.0
"""MB a slice that the kernel may map around it: it maps whole blocks of the page cache, 64 KB to 2 MB."""


def weights_cases() -> dict[str, Case]:
    """Every case by its key, those of small worlds first."""
    cases = {f"golden/{size}": _golden(size) for size in golden.SIZES}
    cases["refused folders"] = _refused()
    cases |= {f"import memory/{layout}": _import_memory(layout) for layout in MEMORY}
    cases["export memory"] = _export_memory()
    for tensor, pipeline in sorted(AXES, key=lambda axes: axes[0] * axes[1]):
        cases[f"round trip/TP{tensor}xPP{pipeline}"] = _round_trip(tensor, pipeline)
    cases |= {f"from_pretrained/{_word(tied)}": _from_pretrained(tied) for tied in (True, False)}
    cases |= {f"tied/TP{tensor}xPP{pipeline}": _tied(tensor, pipeline) for tensor, pipeline in ((1, 2), (2, 2), (1, 4))}
    return cases


def _word(tied: bool) -> str:
    return "tied" if tied else "untied"


def _golden(size: str) -> Case:
    names = (
        f"{size}: published tensors that export would name or shape otherwise",
        f"{size}: the same of the golden list against transformers' own save",
        f"{size}: keys of config, generation and preprocessor files unlike the published ones",
        f"{size}: keys that transformers reads otherwise than from the published config",
    )

    def run(context: Context) -> list[Cell]:
        measures = (
            golden.tensors_that_differ,
            golden.transformers_differs,
            golden.keys_that_differ,
            golden.transformers_reads_otherwise,
        )
        return [
            Cell(name=name, measured=len(context.run_here(measure, size=size)), limit=0, unit="count")
            for name, measure in zip(names, measures, strict=True)
        ]

    return Case(item=4, names=names, run=run)


def _refused() -> Case:
    name = "folders with a wrong tensor or size that are read, or refused without its name or both values"

    def run(context: Context) -> list[Cell]:
        folder = context.scratch / "spoiled"
        write_random(folder, round_model(False), _tokenizer(context), "fp32", max_shard_bytes=10**9)
        wrong = context.run_here(accepted_or_unsaid, folder=folder, model=round_model(False))
        return [Cell(name=name, measured=len(wrong), limit=0, unit="folders")]

    return Case(item=2, names=(name,), run=run)


def _import_memory(layout: str) -> Case:
    told = [f"{stored} folder, {precision} model" for stored, precision in CONVERSIONS]
    peaks = [f"import on {layout}, {conversion}: peak beyond the rank's own shard" for conversion in told]
    elements = f"import on {layout}: elements read beyond the rank's boxes"
    pages = f"import on {layout}: pages touched beyond what was read"
    parallel = ParallelConfig(tensor=MEMORY[layout][0], pipeline=MEMORY[layout][1])

    def run(context: Context) -> list[Cell]:
        cells, costs = [], []
        for name, (stored, precision) in zip(peaks, CONVERSIONS, strict=True):
            folder = _large(context, stored)
            size = parallel.tensor * parallel.pipeline
            ranks = context.run(size, import_cost, parallel=parallel, folder=folder, config=LARGE, precision=precision)
            worst = max(rank.excess for rank in ranks)
            cells.append(Cell(name=name, measured=worst, limit=1 + NOISE, unit="largest tensors"))
            costs += ranks
        beyond = max(cost.elements_beyond for cost in costs)
        touched = max(cost.pages_beyond / cost.slices for cost in costs) / 1e6
        cells.append(Cell(name=elements, measured=beyond, limit=0, unit="elements"))
        cells.append(Cell(name=pages, measured=touched, limit=PAGES, unit="MB a slice"))
        return cells

    return Case(item=2, names=(*peaks, elements, pages), run=run)


def _export_memory() -> Case:
    names = (
        "export in shards of a fifth of the model: peak",
        "export: peak beyond one shard",
    )

    def run(context: Context) -> list[Cell]:
        folder, tokenizer = _large(context, "fp32"), _tokenizer(context)
        cost: ExportCost = context.run(1, export_cost, folder=folder, tokenizer=tokenizer, config=LARGE)[0]
        return [
            Cell(name=names[0], measured=cost.growth / cost.model, limit=1.0, unit="models"),
            Cell(
                name=names[1],
                measured=(cost.growth - cost.shard) / cost.largest,
                limit=2 + NOISE,
                unit="largest tensors",
            ),
        ]

    return Case(item=4, names=names, run=run)


def _round_trip(tensor: int, pipeline: int) -> Case:
    size, at = tensor * pipeline, AXES.index((tensor, pipeline))
    same = [axes for axes in AXES if axes[0] * axes[1] == size]
    other = same[(same.index(AXES[at]) + 1) % len(same)]
    rows = {
        tied: f"TP{tensor}xPP{pipeline}, {_word(tied)}: tensors with another bit after import, export, import"
        for tied in (True, False)
    }

    def run(context: Context) -> list[Cell]:
        cells = []
        for tied, name in rows.items():
            different = 0
            for precision in DTYPES:
                form = "nested" if tied and precision == "fp32" else "published"
                start = _random(context, tied, precision, form)
                shared: dict[str, Any] = {"model": round_model(tied), "precision": precision}
                here = ParallelConfig(tensor=tensor, pipeline=pipeline)
                there = ParallelConfig(tensor=other[0], pipeline=other[1])
                run_dir = str(context.scratch / f"run_{at}_{tied}_{precision}")
                got = context.run(size, import_on, parallel=here, folder=start, **shared)
                different += other_bits(got, start, round_model(tied))
                tokenizer = str(_tokenizer(context))
                context.run(
                    size, import_and_save, parallel=here, folder=start, run_dir=run_dir, tokenizer=tokenizer, **shared
                )
                back = Path(context.run_here(export_to, run_dir=run_dir, folder=Path(run_dir) / "hf"))
                different += folders_differ(_random(context, tied, precision, "published"), back)
                again = context.run(size, import_on, parallel=there, folder=back, **shared)
                different += other_bits(again, start, round_model(tied))
            cells.append(Cell(name=name, measured=different, limit=0, unit="tensors"))
        return cells

    return Case(item=4, names=tuple(rows.values()), run=run)


def _from_pretrained(tied: bool) -> Case:
    name = f"from_pretrained on an exported folder, {_word(tied)}: logits against ours"

    def run(context: Context) -> list[Cell]:
        config, start = round_model(tied), _random(context, tied, "fp32", "published")
        run_dir = str(context.scratch / f"run_pretrained_{tied}")
        tokenizer = str(_tokenizer(context))
        one = ParallelConfig()
        context.run(
            1,
            import_and_save,
            parallel=one,
            folder=start,
            model=config,
            precision="fp32",
            run_dir=run_dir,
            tokenizer=tokenizer,
        )
        folder = Path(context.run_here(export_to, run_dir=run_dir, folder=Path(run_dir) / "hf"))
        error = context.run(1, logits_error, run_dir=run_dir, folder=folder, model=config)[0]
        return [Cell(name=name, measured=error, limit=1e-5, unit="relative")]

    return Case(item=4, names=(name,), run=run)


def _tied(tensor: int, pipeline: int) -> Case:
    layout = f"TP{tensor}xPP{pipeline}"
    names = (
        f"{layout}: tied copies on the last pipeline stage that are absent",
        f"{layout}: tied copies that differ after import",
        f"{layout}: tied copies that differ after 2 steps",
        f"{layout}, tied, from a folder: 2 steps against one process",
    )

    def run(context: Context) -> list[Cell]:
        config, start = round_model(True), _random(context, True, "fp32", "published")
        parallel = ParallelConfig(tensor=tensor, pipeline=pipeline)
        one = context.run(1, train_on, parallel=ParallelConfig(), folder=start, model=config, steps=2)
        ranks = context.run(tensor * pipeline, train_on, parallel=parallel, folder=start, model=config, steps=2)
        before = tied_copies([rank[0] for rank in ranks])
        after = tied_copies([rank[1] for rank in ranks])
        error = compare([rank[2] for rank in one], [rank[2] for rank in ranks]).largest
        return [
            Cell(name=names[0], measured=tensor - before[0], limit=0, unit="tensors"),
            Cell(name=names[1], measured=before[1], limit=0, unit="tensors"),
            Cell(name=names[2], measured=after[1], limit=0, unit="tensors"),
            Cell(name=names[3], measured=error, limit=1e-5, unit="relative"),
        ]

    return Case(item=2, names=names, run=run)


def _tokenizer(context: Context) -> Path:
    folder = context.scratch / "tokenizer"
    return folder if folder.exists() else write_tokenizer(folder, IDS)


def _large(context: Context, precision: str) -> Path:
    """Made by this process without a planted defect, like every folder that a case starts from."""
    folder = context.scratch / f"large_{precision}"
    if not folder.exists():
        write_large(folder, _tokenizer(context), DTYPES[precision])
    return folder


def _random(context: Context, tied: bool, precision: str, form: str) -> Path:
    """Random weights under published names, or under those of transformers' newer nested form."""
    folder = context.scratch / f"{_word(tied)}_{precision}_{form}"
    if not folder.exists():
        write_random(folder, round_model(tied), _tokenizer(context), precision)
        if form == "nested":
            nest(folder)
    return folder


def nest(folder: Path) -> None:
    """Rename a folder's tensors, and move its sizes into text_config, as transformers 5 has them in memory."""
    for file in folder.glob("*.safetensors"):
        save_file({in_memory_name(name): value for name, value in load_file(file).items()}, file)
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"] = {in_memory_name(name): file for name, file in told["weight_map"].items()}
    index.write_text(json.dumps(told))
    config = json.loads((folder / "config.json").read_text())
    outside = {"architectures", "model_type", "vision_config", "torch_dtype", "tie_word_embeddings"}
    text = {key: value for key, value in config.items() if key not in outside and not key.endswith("_token_id")}
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    text["rope_parameters"].pop("type")
    rest = {key: value for key, value in config.items() if key in outside or key.endswith("_token_id")}
    (folder / "config.json").write_text(json.dumps(rest | {"text_config": text | {"model_type": "qwen2_vl_text"}}))
