"""The weights that a stage starts from: found by part, copied or drawn box by box, and told.

`first_weights.json` in the run folder keeps what was taken, dropped and made new, and what the source computes
otherwise.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.build import BuiltModel
from model.config import ModelConfig
from model.hf_read import PieceReader, fill_boxes
from model.hf_weights import canonical_shape, hf_pieces
from model.init import fill_random
from parallel.groups import Groups
from train.chain import Chain, chain_after
from train.checkpoint.commits import Commit
from train.checkpoint.fetch import find_or_fetch
from train.checkpoint.load import load_weights, read_tensors
from train.checkpoint.tensors import TensorReader
from train.config import RunConfig
from train.sources import Source, open_folder, parts_by_source

REPORT = "first_weights.json"
_LAYER = re.compile(r"\.(layers|blocks)\.\d+\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """An opened source and the parts it gives."""

    source: Source
    parts: tuple[str, ...]
    commit: Commit | None = None
    reader: PieceReader | TensorReader | None = None
    """Whole tensors by canonical name; None for parts that are drawn."""
    dropped: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


def first_weights(run: RunConfig, model: BuiltModel, groups: Groups, commit: Commit | None) -> Chain:
    """Fill every parameter: from the commit to go on with, else as `init` says. Every rank of the world calls it.

    A new stage takes the previous one's weights in whatever layout suits it, and never its optimizer. Rank 0 prints
    where they came from and writes `first_weights.json`; a run that goes on leaves that file as it is. Returns the
    checkpoints that they go back to, the oldest first, for the run's own checkpoints.

    Raises:
        ValueError: a source does not fit the model; the same on every rank, whatever it holds.
    """
    parameters = dict(model.module.named_parameters())
    if commit is not None:
        load_weights(commit, parameters, model.boxes)
        chain: Chain = commit.state.get("chain", [])
    else:
        origins = open_origins(run)
        for origin in origins:
            _fill(run, model, parameters, origin)
        chain = [link for origin in origins if origin.commit is not None for link in chain_after(origin.commit)]
        if groups.rank == 0:
            _tell(run, origins)
    for name, parameter in parameters.items():
        # No source has rows that only pad the vocabulary, and a nan in one would reach every gradient of the head.
        parameter.detach().view(-1)[math.prod(model.boxes[name].shape) :].zero_()
    return chain


def open_origins(run: RunConfig) -> list[Origin]:
    """Every source of a new run, opened; a run's checkpoint is read through and verified (all ranks share that)."""
    return [_open(run, source, parts) for source, parts in parts_by_source(run).items()]


def _open(run: RunConfig, source: Source, parts: tuple[str, ...]) -> Origin:
    if source.where is None:
        return Origin(source=source, parts=parts)
    if source.kind == "from_run":
        commit = find_or_fetch(source.where, None, run.checkpoint.transfer_seconds)
        reader = read_tensors(commit.path)
        left = tuple(name for name in reader.names() if _part(name) not in (*parts, "optimizer"))
        return Origin(source=source, parts=parts, commit=commit, reader=reader, dropped=left)
    found = open_folder(run, source, parts)
    return Origin(source=source, parts=parts, reader=found.reader, dropped=found.dropped, differs=found.differs)


def _fill(run: RunConfig, model: BuiltModel, parameters: dict[str, torch.nn.Parameter], origin: Origin) -> None:
    if origin.commit is not None:
        load_weights(origin.commit, parameters, model.boxes, parts=origin.parts)
    elif isinstance(origin.reader, PieceReader):
        fill_boxes(parameters, model.boxes, origin.reader)
    else:
        for name, parameter in parameters.items():
            if _part(model.boxes[name].name) in origin.parts:
                fill_random(parameter, model.boxes[name], run.seed, run.init.std)


def _tell(run: RunConfig, origins: Sequence[Origin]) -> None:
    """Print and save, on the rank that speaks for all."""
    told = report(run.model, origins)
    for line in lines(told):
        print(line, flush=True)
    path = Path(run.run_dir) / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")


def report(model: ModelConfig, origins: Sequence[Origin]) -> dict[str, Any]:
    """What first_weights.json holds: each source with the tensors and parameters of its parts, and what it lost."""
    sizes = {name: math.prod(canonical_shape(pieces)) for name, pieces in hf_pieces(model).items()}
    return {
        "format": 1,
        "model": model.name,
        "sources": [
            {
                "source": origin.source.kind,
                "where": origin.source.where,
                "checkpoint": origin.commit.path.name if origin.commit else None,
                "parts": {part: _count(part, sizes) for part in origin.parts},
                "dropped": list(origin.dropped),
                "differs": list(origin.differs),
            }
            for origin in origins
        ],
    }


def lines(told: dict[str, Any]) -> Iterator[str]:
    """A report for people: names that differ in their layer alone are one entry."""
    for entry in told["sources"]:
        for part, count in entry["parts"].items():
            origin = "made new" if entry["where"] is None else f"from init.{entry['source']}={entry['where']}"
            yield f"first weights: {part} {origin}: {count['tensors']} tensors, {count['parameters']:,} parameters"
        if entry["dropped"]:
            yield f"  dropped {len(entry['dropped'])} tensors: {', '.join(collapse(entry['dropped']))}"
        for difference in entry["differs"]:
            yield f"  differs: {difference}"


def collapse(names: Sequence[str]) -> list[str]:
    """Names with the number of their layer left out, each once and with how many it stands for."""
    counts = Counter(_LAYER.sub(r".\1.*.", name) for name in names)
    return [f"{name} ({count}x)" if count > 1 else name for name, count in counts.items()]


def _count(part: str, sizes: dict[str, int]) -> dict[str, int]:
    mine = [size for name, size in sizes.items() if _part(name) == part]
    return {"tensors": len(mine), "parameters": sum(mine)}


def _part(name: str) -> str:
    return name.partition(".")[0]
