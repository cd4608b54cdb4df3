"""A Hugging Face folder read on one layout, trained or only saved, exported, and read again on another."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models

from data.encoding.tokenizer import SPECIAL_NAMES
from launch.checkpoints.export import export
from model.build import BuiltModel, build_model
from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.hf_read import open_hf
from model.hf_weights import canonical_shape, hf_pieces
from model.hf_write import write_hf
from model.part_folder import open_whole
from model.tensor_folder import TensorFolder
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.commits import save_commit
from tests.harness.filling import fill_from
from tests.harness.layouts import Record, record_steps, start
from tests.harness.parity import _transformers_inputs
from tests.harness.rows import PATCH_DIM, pack, random_step, random_step_samples
from train.batches import RowForm, announce
from train.checkpoint.entries import writer_of
from train.checkpoint.load import find_commit, load_weights
from train.resolve import compose, to_yaml

EMBEDDING = "language.embedding.word_embeddings.weight"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def round_model(tied: bool) -> ModelConfig:
    """Fits every TP and PP of 1, 2 and 4; neither 2 nor 4 divides its vocabulary."""
    return ModelConfig(
        name="round trip",
        vision=VisionConfig(depth=2, embed_dim=64, num_heads=4),
        language=LanguageConfig(
            hidden_size=64,
            num_layers=5,
            num_heads=8,
            num_kv_heads=4,
            ffn_size=96,
            vocab_size=301,
            mrope_section=(2, 1, 1),
            tie_embeddings=tied,
            max_positions=4096,
        ),
    )


def write_tokenizer(folder: Path, ids: dict[str, int]) -> Path:
    """A tokenizer of 300 single words whose special tokens have the ids that `ids` gives to their roles.

    What else the family's tokenizers have takes the last ids.
    """
    from model.hf_config import SPECIAL_TOKENS

    folder.mkdir(parents=True)
    special = {SPECIAL_TOKENS.get(role, f"<|{role}|>"): number for role, number in ids.items()}
    others = [token for token in SPECIAL_NAMES.values() if token not in special]
    special |= {token: 300 - len(others) + number for number, token in enumerate(others)}
    rest = (number for number in range(300) if number not in special.values())
    vocabulary = special | {f"w{number}": number for number in rest}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w20"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}'
    (folder / "tokenizer_config.json").write_text(settings)
    return folder


def write_random(
    folder: Path, model: ModelConfig, tokenizer: Path, precision: str, max_shard_bytes: int = 200_000
) -> Path:
    """A folder of random weights, in several shards unless they may be larger.

    Norms lie around 1 and biases are not 0, so that a swap shows.
    """
    generator = torch.Generator().manual_seed(7)
    table = hf_pieces(model)

    def read(name: str) -> torch.Tensor:
        whole = 0.05 * torch.randn(canonical_shape(table[name]), generator=generator)
        return whole + 1.0 if "norm" in name and name.endswith("weight") else whole

    return write_hf(
        folder,
        model,
        read,
        tokenizer,
        dtype=DTYPES[precision],
        min_pixels=3136,
        max_pixels=50176,
        max_shard_bytes=max_shard_bytes,
    )


@dataclass(kw_only=True)
class Held:
    """What one rank holds of one canonical tensor, as bytes."""

    name: str
    place: tuple[slice, ...]
    raw: np.ndarray
    owner: bool


def import_on(parallel: ParallelConfig, folder: Path, model: ModelConfig, precision: str) -> list[Held]:
    """What this rank of the current world holds after import; run it on every rank."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        return held(_built(parallel, groups, folder, model, precision))


def import_and_save(
    parallel: ParallelConfig, folder: Path, model: ModelConfig, precision: str, run_dir: str, tokenizer: str
) -> None:
    """Import on this rank and commit a checkpoint together with the others."""
    composed = compose("quickstart_stage1")
    run = replace(composed, model=model, run_dir=run_dir, data=replace(composed.data, tokenizer=tokenizer))
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        built = _built(parallel, groups, folder, model, precision)
        parameters = dict(built.module.named_parameters())
        save_commit(run_dir, 1, parameters, built.boxes, None, {}, to_yaml(run), writer=writer_of(groups), keep=1)


def export_to(run_dir: str, folder: Path) -> Path:
    """`triptych checkpoint export`, in several shards."""
    return export(run_dir, folder, max_shard_bytes=200_000)


def train_on(
    parallel: ParallelConfig, folder: Path, model: ModelConfig, steps: int
) -> tuple[list[Held], list[Held], Record]:
    """Import on this rank and train in fp32: what it held before, what it held afterwards, and the steps' record."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        rows = [random_step(300 + step, 4, model.language.vocab_size) for step in range(steps)]
        made = start(parallel, "stage2", groups, model=model, steps=rows)
        fill_from(made.built, folder)
        made.optimizer.masters_from_weights()
        before = held(made.built)
        record = record_steps(made)
        return before, held(made.built), record


def _built(parallel: ParallelConfig, groups: Any, folder: Path, model: ModelConfig, precision: str) -> BuiltModel:
    built = build_model(model, parallel, groups, DTYPES[precision], model.parts)
    for parameter in built.module.parameters():
        torch.nn.init.constant_(parameter, 3.0)  # what nobody fills must not look filled
    fill_from(built, folder)
    return built


def held(built: BuiltModel) -> list[Held]:
    """Every parameter of this rank, padding left out."""
    found = []
    for name, parameter in built.module.named_parameters():
        if name not in built.boxes:  # fills an empty optimizer group
            continue
        box = built.boxes[name]
        place = tuple(slice(at, at + size) for at, size in zip(box.offset, box.shape, strict=True))
        raw = box.view(parameter).contiguous().unsqueeze(-1).view(torch.uint8).numpy().copy()
        found.append(Held(name=box.name, place=place, raw=raw, owner=box.owner))
    return found


def other_bits(per_rank: list[list[Held]], folder: Path, model: ModelConfig) -> int:
    """Canonical tensors that some rank holds with other bits than the folder's, or that no rank holds whole."""
    reader = open_hf(folder, model)
    different = 0
    for name in reader.names():
        whole = reader.read(name).unsqueeze(-1).view(torch.uint8).numpy()
        covered = np.zeros(whole.shape, dtype=bool)
        same = True
        for piece in (piece for rank in per_rank for piece in rank if piece.name == name):
            same &= piece.raw.shape == whole[piece.place].shape and np.array_equal(whole[piece.place], piece.raw)
            covered[piece.place] = True
        different += not (same and covered.all())
    return different


def folders_differ(left: Path, right: Path) -> int:
    """Stored tensors that only one folder has, or that differ in dtype, shape or any bit."""
    stored = [_stored(left), _stored(right)]
    different = len(stored[0].keys() ^ stored[1].keys())
    for name in stored[0].keys() & stored[1].keys():
        one, two = stored[0][name], stored[1][name]
        alike = one.dtype == two.dtype and one.shape == two.shape
        different += not (alike and torch.equal(one.view(torch.uint8), two.view(torch.uint8)))
    return different


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    assert set(tensors) == set(TensorFolder(folder).names()), "shards that the index does not name"
    return tensors


def accepted_or_unsaid(folder: Path, model: ModelConfig) -> list[str]:
    """Ways of spoiling a published folder of one file after which it is read, or refused without the words due."""
    file, config = folder / "model.safetensors", folder / "config.json"
    tensors, told = load_file(file), json.loads(config.read_text())
    first, second = "model.layers.0.mlp.up_proj.weight", "visual.blocks.1.norm1.bias"
    ways: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
        "missing": ({name: value for name, value in tensors.items() if name != first}, told, [f"missing {first}"]),
        "extra": (tensors | {"visual.extra": torch.zeros(2)}, told, ["no place for visual.extra (2,)"]),
        "shape": (tensors | {second: torch.zeros(3)}, told, [f"{second} has shape (3,), the model needs (64,)"]),
        "quantised": (tensors | {second: torch.zeros(64, dtype=torch.int8)}, told, [f"{second} is I8"]),
        "size": (tensors, told | {"num_hidden_layers": 9}, ["num_layers is 9 there and 5 here"]),
        "base": (tensors, told | {"rope_theta": 5.0}, ["rope_theta is 5.0 there and 1000000.0 here"]),
        "epsilon": (tensors, told | {"rms_norm_eps": 1e-5}, ["rms_norm_eps is 1e-05 there and 1e-06 here"]),
    }
    wrong = []
    for way, (stored, said, due) in ways.items():
        save_file(stored, file)
        config.write_text(json.dumps(said))
        try:
            open_whole(folder, model, model.parts)
            wrong.append(way)
        except ValueError as error:
            wrong += [way for words in due if words not in str(error)]
    return wrong


def tied_copies(per_rank: list[list[Held]]) -> tuple[int, int]:
    """(second copies of the embedding, those that differ from the first copy of the same rows in any bit)."""
    pieces = [piece for rank in per_rank for piece in rank if piece.name == EMBEDDING]
    first = {piece.place[0].start: piece.raw for piece in pieces if piece.owner}
    second = [piece for piece in pieces if not piece.owner]
    return len(second), sum(not np.array_equal(first[piece.place[0].start], piece.raw) for piece in second)


def logits_error(run_dir: str, folder: Path, model: ModelConfig) -> float:
    """Of `from_pretrained` on an exported folder against our own model with the checkpoint's weights, in fp32: norm of
    the difference over the norm, over samples of stills, clips and text. In a joined world of one process."""
    from transformers import Qwen2VLForConditionalGeneration

    theirs, report = Qwen2VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups, torch.no_grad():
        built = build_model(model, ParallelConfig(), groups, torch.float32, model.parts)
        load_weights(find_commit(run_dir), dict(built.module.named_parameters()), built.boxes)
        form = RowForm(dtype=torch.float32, patch_dim=PATCH_DIM, multiple=1)
        worst = 0.0
        for row in random_step_samples(11, 3, model.language.vocab_size):
            expected = torch.cat([theirs(**_transformers_inputs(sample)).logits[0] for sample in row])
            announced = announce([pack(row)], 1, groups, form)
            ours = built.module.chunks[0](announced.rows[0], with_loss=False)[0]
            worst = max(worst, float((ours - expected).norm() / expected.norm()))
        return worst
