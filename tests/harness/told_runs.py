"""Folders of runs as they are after training, written without training: for pages that show them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from train.shown import Shown

SOURCES = ("captions", "documents", "clips")


def write_run(
    folder: Path, steps: int = 600, *, pipeline: bool = True, sources: tuple[str, ...] = SOURCES, words: str = ""
) -> Path:
    """A healthy run of so many steps, with a checkpoint every fourth of them, an evaluation every half, one step left
    out and one resume.

    Args:
        sources: their names.
        words: stands in every text that a page may show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows = [_row(step, steps, generator, pipeline, sources, words) for step in range(1, steps + 1)]
    rows[steps // 3] |= {"skipped": f"loss is nan {words}", "loss": None, "part_norms": {}, "grad_norm": 0.0}
    _write(folder / "metrics.jsonl", rows)
    _write(folder / "skipped.jsonl", [{"step": steps // 3 + 1, "reason": f"loss is nan {words}", "rows": []}])
    _write(folder / "saves.jsonl", [_save(step, words) for step in range(steps // 4, steps + 1, max(1, steps // 4))])
    _write(folder / "starts.jsonl", [_start(step, words) for step in (0, steps // 2)])
    _write(folder / "quarantine_0.jsonl", [_bad(number, sources, words) for number in range(5)])
    shown = [_shown(number, sources, words) for number in range(4)]
    _write(
        folder / "evaluations.jsonl",
        [
            {
                "stage": "stage2",
                "step": step,
                "losses": dict.fromkeys(sources, 2.0 - step / steps),
                "samples": [sample.to_dict() for sample in shown],
            }
            for step in (steps // 2, steps)
        ],
    )
    verdict = {"verdict": "done", "step": steps, "commit": None, "reason": f"step {steps} was the last {words}"}
    (folder / "verdict.json").write_text(json.dumps(verdict | {"when": "2026-11-22T03:00:00Z"}))
    return folder


def _row(
    step: int, steps: int, generator: np.random.Generator, pipeline: bool, sources: tuple[str, ...], words: str
) -> dict[str, Any]:
    noise = generator.standard_normal(8)
    loss = 0.9 + 2.4 * math.exp(-5 * step / steps) + 0.08 * noise[0]
    norm = 0.4 + 0.9 * math.exp(-8 * step / steps) + 0.05 * abs(noise[1])
    seconds = 0.5 + 0.02 * abs(noise[2]) + (0.4 if step % 97 == 0 else 0)
    tokens = int(8192 + 400 * noise[3])
    return {
        "stage": f"stage2{words}",
        "step": step,
        "time": 1.78e9 + step * 0.52,
        "loss": loss,
        "grad_norm": norm,
        "part_norms": {"vision": 0.4 * norm, "merger": 0.3 * norm, "language": 0.87 * norm},
        "rates": {"vision": 1e-4 * step / steps, "merger": 2e-4 * step / steps, "language": 5e-5 * step / steps},
        "tokens": 8192 * step,
        "samples": 40 * step,
        "step_tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds,
        "data_seconds": 0.01 * abs(noise[4]),
        "bubble": 0.12 + 0.01 * noise[5] if pipeline else 0.0,
        "bad_samples": 5 * step // steps,
        "skipped": None,
        "sources": {
            name: {"loss": loss * (0.8 + 0.2 * place), "samples": 10 * (place + 1), "tokens": 2000, "targets": 900}
            for place, name in enumerate(sources)
        },
        "load_spread": 0.02 * abs(noise[6]),
        "visual_load_spread": 0.08 * abs(noise[7]),
        "microbatch_visual_spread": 0.3 + 0.05 * noise[6],
        "mfu": 0.41 + 0.01 * noise[5],
    }


def _save(step: int, words: str) -> dict[str, Any]:
    name = f"step_{step:08d}.0a1b2c3d{words}"
    sizes = {"save_bytes": 35_000_000_000, "save_stall_seconds": 1.2, "save_seconds": 41.0}
    return {"step": step, "checkpoint": name, "fault": None, **sizes}


def _start(step: int, words: str) -> dict[str, Any]:
    where = {"host": f"node17{words}", "device": "NVIDIA H200", "world_size": 64, "layout": "dp8-tp4-pp2"}
    return {"stage": "stage2", "step": step, "time": 1.78e9 + step, **where, "versions": {"torch": f"2.13.0{words}"}}


def _bad(number: int, sources: tuple[str, ...], words: str) -> dict[str, Any]:
    return {
        "sample_id": number,
        "source": sources[0],
        "index": 100 + number,
        "key": f"k{number}{words}",
        "where": f"shard-0003.tar[{number}:9]",
        "crc32c": "0a0b0c0d",
        "reason": f"picture cannot be decoded: truncated {words}",
    }


def _shown(number: int, sources: tuple[str, ...], words: str) -> Shown:
    picture = np.full((84, 112, 3), 40 * number + 30, dtype=np.uint8)
    picture[20:60, 30:80] = (200, 120, 40 * number)
    return Shown(
        source=sources[number % len(sources)],
        sample=f"{sources[0]}:{number}",
        prompt=f"[image] What is shown? {words}",
        expected=f"A square, orange. {words}",
        answer=f"A square. {words}" if number % 2 else f"A square, orange. {words}",
        right=not number % 2,
        loss=0.7,
        pictures=(picture,),
    )


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
