"""From a run's checkpoint to transformers and back, in one process."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.encoding.chat_template import CHAT_TEMPLATE
from launch.checkpoints.export import export, run_of
from launch.checkpoints.listing import import_hf, listed, shown, verified
from model.canonical import Box
from model.hf_processor import copy_tokenizer
from model.hf_weights import canonical_shape, hf_pieces, in_memory_name, to_hf
from tests.harness.commits import save_commit
from tests.harness.parity import IDS
from tests.harness.roundtrip import write_tokenizer
from train.checkpoint.load import find_commit, read_tensors
from train.config import RunConfig
from train.resolve import compose, to_yaml


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The quickstart's first stage, with folders of its own."""
    folder = tmp_path_factory.mktemp("run")
    composed = compose("quickstart_stage1")
    data = replace(composed.data, tokenizer=str(write_tokenizer(folder / "tokenizer", IDS)))
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
    return save_commit(run.run_dir, step, weights, boxes, None, {"cursor": {}}, to_yaml(run), keep=5)


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
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds files already"):
        export(run.run_dir, tmp_path / "used")

    back = replace(run, run_dir=str(tmp_path / "imported"))
    reader = read_tensors(import_hf(folder, back))
    assert set(reader.names()) == set(weights)
    assert all(torch.equal(reader.read(name), value) for name, value in weights.items())
    other = replace(run.model, language=replace(run.model.language, rope_theta=10_000.0))
    with pytest.raises(ValueError, match=r"rope_theta is .* there and 10000.0 here"):
        import_hf(folder, replace(back, model=other, run_dir=str(tmp_path / "other")))
    kept = sorted(path.relative_to(back.run_dir) for path in Path(back.run_dir).rglob("*"))
    for resumed in (False, True):
        with pytest.raises(ValueError, match=r"already holds 1 checkpoint\(s\).* start anew with another run_dir"):
            import_hf(folder, replace(back, resume=resumed))
    assert sorted(path.relative_to(back.run_dir) for path in Path(back.run_dir).rglob("*")) == kept


def test_several_dtypes_come_and_go_without_a_bit_lost(
    run: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Norms and the parts of one q/k/v have another dtype than most weights."""
    save(replace(run, run_dir=str(tmp_path / "run")), 1)
    folder = export(tmp_path / "run", tmp_path / "hf")
    file = folder / "model.safetensors"
    stored = load_file(file)
    third = torch.tensor(1 / 3)  # no bfloat16
    for name in ("model.norm.weight", "visual.merger.ln_q.bias", "model.layers.0.self_attn.k_proj.weight"):
        stored[name] = stored[name].float() + third
    save_file(stored, file)
    caplog.clear()
    import_hf(folder, replace(run, run_dir=str(tmp_path / "back")))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1 and "1 fused tensors in several dtypes" in told[0]
    assert "language.decoder.layers.0.self_attention.linear_qkv.weight" in told[0]
    again = export(tmp_path / "back", tmp_path / "again")
    assert json.loads((again / "config.json").read_text())["torch_dtype"] == "bfloat16"
    found = load_file(again / "model.safetensors")
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        wide = name in {f"model.layers.0.self_attn.{part}_proj.weight" for part in "qv"}
        assert found[name].dtype == (torch.float32 if wide else value.dtype), name
        assert torch.equal(found[name], value.to(found[name].dtype)), name


def test_a_tokenizer_that_chat_would_refuse_is_refused_before_anything_is_written(
    run: RunConfig, tmp_path: Path
) -> None:
    mine = replace(run, run_dir=str(tmp_path / "run"))
    save(mine, 1)
    saved = json.loads((Path(run.data.tokenizer) / "tokenizer.json").read_text())
    short = tmp_path / "short"
    short.mkdir()
    saved["added_tokens"] = [one for one in saved["added_tokens"] if one["content"] != "<|im_start|>"]
    del saved["model"]["vocab"]["<|im_start|>"]
    (short / "tokenizer.json").write_text(json.dumps(saved))
    for folder, said in ((short, r"lacks the special tokens <\|im_start\|>; use"), (tmp_path / "gone", "no tokenizer")):
        with pytest.raises(ValueError, match=said):
            export(mine.run_dir, tmp_path / "hf", tokenizer=folder)
    saved["model"]["vocab"] |= {"<|im_start|>": 298, "far": run.model.language.vocab_size}
    saved["added_tokens"].append({**saved["added_tokens"][0], "content": "<|im_start|>", "id": 298})
    (short / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"largest token id is 1024 but the model has 1024 embeddings"):
        export(mine.run_dir, tmp_path / "hf", tokenizer=short)
    (short / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        export(mine.run_dir, tmp_path / "hf", tokenizer=short)
    assert not (tmp_path / "hf").exists()


def test_every_auto_class_reads_an_exported_folder(run: RunConfig, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GenerationConfig

    mine = replace(run, run_dir=str(tmp_path / "run"))
    save(mine, 1)
    folder = export(mine.run_dir, tmp_path / "hf")
    names = {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    names |= {"tokenizer_config.json", "chat_template.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w30"}]}]
    assert "<|vision_start|><|image_pad|><|vision_end|>w30" in tokenizer.apply_chat_template(asked, tokenize=False)
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == AutoConfig.from_pretrained(folder).image_token_id
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [IDS["eos"], IDS["bos"]]
    processor = AutoImageProcessor.from_pretrained(folder)
    image = run.data.image
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (image.min_pixels, image.max_pixels)


SHOWS, TEXT_ONLY = "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}", "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("files", "ours"),
    [
        ({}, True),
        ({"tokenizer_config.json": {"chat_template": TEXT_ONLY}}, True),
        ({"chat_template.jinja": SHOWS, "tokenizer_config.json": {"chat_template": TEXT_ONLY}}, True),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": TEXT_ONLY}]}}, True),
        ({"tokenizer_config.json": {"chat_template": SHOWS}}, False),
        ({"chat_template.jinja": SHOWS}, False),
        ({"chat_template.json": {"chat_template": SHOWS}}, False),
    ],
)
def test_a_template_that_cannot_show_pictures_gives_way(
    files: dict, ours: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = tmp_path / "tokenizer", tmp_path / "hf"
    source.mkdir()
    target.mkdir()
    for name, content in files.items():
        (source / name).write_text(content if isinstance(content, str) else json.dumps({"kept": 1} | content))
    with caplog.at_level(logging.WARNING):
        copy_tokenizer(source, target, CHAT_TEMPLATE)
    assert ("conversation format was written" in caplog.text) == ours
    template = CHAT_TEMPLATE if ours else SHOWS
    settings = json.loads((target / "tokenizer_config.json").read_text()) if ours else {"chat_template": template}
    assert settings["chat_template"] == template
    assert not ours or settings.get("kept", 1) == 1
    assert (target / "chat_template.jinja").exists() == (not ours and "chat_template.jinja" in files)
    if not (target / "chat_template.jinja").exists():
        assert json.loads((target / "chat_template.json").read_text())["chat_template"] == template


def test_an_export_that_was_cut_short_loads_nowhere(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(run, run_dir=str(tmp_path / "run"))
    save(mine, 1)
    written = []

    def full_disk(tensors: object, file: Path, **_: object) -> None:
        if written:
            raise OSError("no space left on device")
        written.append(file)
        file.touch()

    monkeypatch.setattr("model.hf_write.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        export(mine.run_dir, tmp_path / "hf", max_shard_bytes=1_000_000)
    assert written[0].exists() and not (tmp_path / "hf" / "config.json").exists()


def test_the_recipe_in_a_checkpoint_is_the_run(run: RunConfig, tmp_path: Path) -> None:
    mine = replace(run, run_dir=str(tmp_path))
    save(mine, 1)
    assert run_of(find_commit(tmp_path)) == mine


def test_lines_say_what_is_there(run: RunConfig, tmp_path: Path) -> None:
    mine = replace(run, run_dir=str(tmp_path))
    assert not verified(tmp_path).good
    first, second = save(mine, 1), save(mine, 2)
    assert verified(tmp_path).lines == [
        f"{path.name}  every digest holds, every tensor is in order" for path in (second, first)
    ]
    assert "language.decoder.final_layernorm.weight  [128]  bfloat16" in shown(first).lines
    (second / "COMMIT").unlink()
    unfinished, sound = listed(tmp_path).data
    assert (unfinished["name"], unfinished["verified"]) == (second.name, "never finished")
    assert sound["gb"] == sound["written_gb"] > 1e-4 and sound["verified"].startswith("20")
    report = verified(tmp_path)
    assert report.good and "never finished" in report.lines[0] and "holds" in report.lines[1]
