"""Measurements that run inside a world of one process, over real reading and saving code."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tests.harness.layouts as layouts
from data.encoding.tokenizer import load_tokenizer
from data.errors import ShardFault
from data.index.build import open_index
from data.loading.rows import build_reader, open_indexes
from data.plan.plan import Cursor, Plan
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.commits import save_commit
from tests.harness.parity import CASES
from tests.harness.rows import PATCH_DIM, pack, random_sample
from tests.harness.runs import data_config
from tests.prove.planting import replace_name
from tests.prove.plants import PLANTS
from train.batches import RowForm, announce
from train.checkpoint.load import find_commit, load_weights
from train.checkpoint.writing import Writing
from train.errors import CheckpointError


def planted(plant: str, measure: Any, arguments: dict[str, Any]) -> Any:
    """Run a task in a process with a defect; the defect is mended afterwards."""
    mend = PLANTS[plant].apply()
    try:
        return measure(**arguments)
    finally:
        mend()


def wrong_positions() -> tuple[int, int]:
    """(wrong, all) tokens of a packed row whose position, as the model is told, is not that in the sample alone."""
    generator = np.random.default_rng(0)
    samples = [random_sample(generator, 301, grids) for grids in CASES["a packed row of all"]]
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        form = RowForm(dtype=torch.float32, patch_dim=PATCH_DIM, multiple=1)
        row = announce([pack(samples)], 1, groups, form).rows[0]
    alone = np.concatenate([sample["positions"] for sample in samples], axis=1)
    wrong = (row.positions[:, 0].numpy() != alone).any(axis=0)
    return int(wrong.sum()), wrong.size


def wrong_supervision(folder: Path) -> tuple[int, int]:
    """(wrong, all) samples whose targets do not spell exactly what is to be learnt of their JSON."""
    config = data_config(folder)
    tokenizer, indexes = load_tokenizer(config.tokenizer), open_indexes(config)
    plan, reader = Plan(config, indexes), build_reader(config, tokenizer, indexes)
    wrong = total = 0
    cursor = Cursor()
    for _ in range(3):
        step = plan.step(cursor)
        cursor = step.next_cursor
        for planned in step.rows:
            row, _ = reader.read(planned)
            start = 0
            for (source, index), length in zip(planned.samples, row.segment_lengths.tolist(), strict=True):
                targets, tokens = row.targets[start : start + length], row.tokens[start : start + length]
                learnt = np.flatnonzero(targets >= 0)
                next_ones = learnt[-1] + 1 < length and (targets[learnt] == tokens[learnt + 1]).all()
                content = indexes[source].read_raw(index).content
                # Nothing stands before a document's first token that could predict it.
                first = tokens[:1].tolist() if "parts" in content and content["parts"][0]["type"] == "text" else []
                wrong += not next_ones or tokenizer.decode(first + targets[learnt].tolist()) != supervised_text(content)
                total += 1
                start += length
    reader.close()
    return wrong, total


def supervised_text(content: dict[str, Any]) -> str:
    """What a sample teaches, from the issue's own words and nothing of the encoder."""
    if "messages" in content:
        answers = [message["content"] for message in content["messages"] if message["role"] == "assistant"]
        return "".join(answer + "<|im_end|>\n" for answer in answers)
    parts = [part for part in content["parts"] if part["type"] == "text" and not part.get("prefix")]
    return "".join(part["text"] for part in parts) + "<|endoftext|>"


def believed_samples(folder: Path) -> tuple[int, int]:
    """(believed, all) samples with one flipped bit that were handed out instead of refused."""
    with tempfile.TemporaryDirectory() as copy:
        source = Path(copy) / "mixed"
        shutil.copytree(folder / "mixed", source)
        index = open_index(source)
        for i in range(len(index)):
            shard = source / index.shards[index.columns["shard"][i]].name
            raw = bytearray(shard.read_bytes())
            raw[int(index.columns["offset"][i]) + int(index.columns["nbytes"][i]) // 2] ^= 1
            shard.write_bytes(raw)
        believed = 0
        for i in range(len(index)):
            try:
                index.read_bytes(i)
                believed += 1
            except ShardFault:
                pass
        return believed, len(index)


def believed_commits() -> tuple[int, int]:
    """(believed, all) checkpoints with one flipped bit, file by file, that were opened instead of refused."""
    with tempfile.TemporaryDirectory() as folder, model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        made = layouts.start(ParallelConfig(), "stage2", groups)
        commit = _save(made, Path(folder), 1)
        made.optimizer.close()
        believed = 0
        files = [file for file in commit.iterdir() if file.is_file()]
        for file in files:
            good = file.read_bytes()
            changed = bytearray(good or b"\0")  # a rank without a share writes an empty file
            changed[len(good) // 2] ^= 1
            file.write_bytes(changed)
            try:
                find_commit(folder, tell=lambda _: None)
                believed += 1
            except (ValueError, CheckpointError):
                pass
            file.write_bytes(good)
        find_commit(folder)
        return believed, len(files)


class _Cut(Exception):
    """The end of a process, as far as files go: nothing after it is written."""


def broken_saves() -> tuple[int, int]:
    """(wrong, all) saves cut short, one at each wait for the disk, after which the newest checkpoint is not whole."""
    with tempfile.TemporaryDirectory() as folder, model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        made = layouts.start(ParallelConfig(), "stage2", groups)
        parameters = dict(made.built.module.named_parameters())
        wrong = cuts = 0
        for stop in range(1, 100):
            run = Path(folder) / str(stop)
            _fill_with(parameters, 1.0)
            _save(made, run, 1)
            _fill_with(parameters, 2.0)
            finished = _save_until(made, run, stop)
            cuts += not finished
            try:
                commit = find_commit(run, tell=lambda _: None)
                load_weights(commit, parameters, made.built.boxes)
                whole = all(bool((p == float(commit.step)).all()) for p in parameters.values() if p.numel())
            except Exception:
                whole = False
            wrong += not whole
            if finished:
                break
        assert cuts > 3, f"only {cuts} waits for the disk were seen"
        made.optimizer.close()
        return wrong, cuts


def _fill_with(parameters: dict[str, torch.nn.Parameter], value: float) -> None:
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(value)


def _save_until(made: layouts.Stage, run: Path, stop: int) -> bool:
    """Save, stopping at the `stop`-th fsync; whether the save came to its end. Nothing is tidied after the stop."""
    sync, seen = os.fsync, [0]
    mend = replace_name(Writing, "_tidy", lambda _: lambda self, save: None)

    def cut(number: Any) -> None:
        seen[0] += 1
        if seen[0] >= stop:
            raise _Cut
        sync(number)

    os.fsync = cut  # type: ignore[assignment]
    try:
        _save(made, run, 2)
        return True
    except Exception:
        return False
    finally:
        os.fsync = sync
        mend()


def _save(made: layouts.Stage, run: Path, step: int) -> Path:
    parameters = dict(made.built.module.named_parameters())
    return save_commit(run, step, parameters, made.built.boxes, made.optimizer, {}, "", keep=9)
