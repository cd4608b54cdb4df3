"""From a run's checkpoint to transformers and back, in one process."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models
from torch import Tensor

from launch.checkpoints import import_hf, list_lines, show_lines, verify_lines
from launch.export import export, run_of
from model.canonical import Box
from model.hf_config import SPECIAL_TOKENS
from model.hf_weights import canonical_shape, hf_pieces, in_memory_name, to_hf
from train.checkpoint import find_commit, save_commit
from train.config import RunConfig
from train.resolve import compose, to_yaml
from train.tensor_store import TensorReader


def tokenizer_folder(path: Path) -> Path:
    path.mkdir()
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(SPECIAL_TOKENS.values())])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The quickstart's first stage, with folders of its own."""
    folder = tmp_path_factory.mktemp("run")
    composed = compose("quickstart_stage1")
    data = replace(composed.data, tokenizer=str(tokenizer_folder(folder / "tokenizer")))
    return replace(composed, run_dir=str(folder / "run"), data=data)


def weights_of(run: RunConfig, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(canonical_shape(pieces), generator=generator).bfloat16()
        for name, pieces in hf_pieces(run.model).items()
    }


def save(run: RunConfig, step: int) -> Path:
    weights = weights_of(run, step)
    boxes = {
        name: Box(name=name, global_shape=tuple(value.shape), offset=(0,) * value.dim(), shape=tuple(value.shape))
        for name, value in weights.items()
    }
    return save_commit(run.run_dir, step, weights, boxes, None, {"cursor": {}}, to_yaml(run), tp_rank=0, keep=5)


def test_newest_usable_checkpoint_reaches_transformers(run: RunConfig, tmp_path: Path) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    save(run, 3)
    damaged = save(run, 4)
    (damaged / "state.json").write_text("{}")
    folder = export(run.run_dir, tmp_path / "hf")
    model, report = Qwen2VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert model.dtype == torch.bfloat16
    state, weights = model.state_dict(), weights_of(run, 3)
    for name, pieces in hf_pieces(run.model).items():
        for key, value in to_hf(pieces, weights[name]).items():
            assert torch.equal(state[in_memory_name(key)], value), key
    assert (folder / "tokenizer.json").is_file()
    with pytest.raises(ValueError, match="holds a model already"):
        export(run.run_dir, folder)

    back = replace(run, run_dir=str(tmp_path / "imported"))
    reader = TensorReader(import_hf(folder, back))
    assert set(reader.names()) == set(weights)
    assert all(torch.equal(reader.read(name), value) for name, value in weights.items())
    other = replace(run.model, language=replace(run.model.language, rope_theta=10_000.0))
    with pytest.raises(ValueError, match=r"rope_theta is 1000000.0 there and 10000.0 here"):
        import_hf(folder, replace(back, model=other))


def test_the_recipe_in_a_checkpoint_is_the_run(run: RunConfig, tmp_path: Path) -> None:
    mine = replace(run, run_dir=str(tmp_path))
    save(mine, 1)
    assert run_of(find_commit(tmp_path)) == mine


def test_lines_say_what_is_there(run: RunConfig, tmp_path: Path) -> None:
    mine = replace(run, run_dir=str(tmp_path))
    assert verify_lines(tmp_path)[0] is False
    first, second = save(mine, 1), save(mine, 2)
    assert verify_lines(tmp_path) == (True, [f"{path.name}  every digest holds" for path in (second, first)])
    assert "language.decoder.final_layernorm.weight  [128]  bfloat16" in show_lines(first)
    (second / "COMMIT").unlink()
    assert list_lines(tmp_path)[0] == f"{second.name}  never finished"
    assert " MB  20" in list_lines(tmp_path)[1]
    good, lines = verify_lines(tmp_path)
    assert not good and "never finished" in lines[0] and "holds" in lines[1]
