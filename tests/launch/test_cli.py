"""The `triptych` command: what it prints and how it ends."""

from pathlib import Path

import pytest

from data.formats.shards import write_shards
from data.index.build import open_index
from data.types import RawSample
from launch.pages.look import sample_lines, source_lines
from tests.data.conftest import picture_bytes, train_tokenizer
from tests.launch.commands import end
from train.resolve import compose


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    train_tokenizer(folder / "tokenizer")
    picture = {"type": "image", "media": 0}
    samples = [
        RawSample(
            key=f"s{n}",
            content={
                "source": "chat",
                "messages": [
                    {"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]},
                    {"role": "assistant", "content": f"digit {n}"},
                ],
            },
            media={0: ("png", picture_bytes(56, 84, n))},
        )
        for n in range(3)
    ]
    write_shards(folder / "chat", "chat", samples, 2)
    return folder


def test_index_then_inspect(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end("inspect", str(source / "chat")) == 2
    assert "triptych index" in capsys.readouterr().err
    assert end("index", str(source / "chat"), "--tokenizer", str(source / "tokenizer")) == 0
    assert "2 of 2 shards, 3 samples" in capsys.readouterr().out
    assert end("inspect", str(source / "chat"), "--sample", "1") == 0
    told = capsys.readouterr().out
    assert "3 samples in 2 shards" in told
    assert "images: 3, height 56 to 56" in told
    assert "key s1" in told and "[image] What is this?" in told
    assert end("inspect", str(source / "chat"), "--sample", "3") == 2
    assert "samples 0 to 2, not 3" in capsys.readouterr().err


def test_what_is_learnt_is_marked(source: Path) -> None:
    main_data = compose("quickstart_stage3", [f"data.tokenizer={source / 'tokenizer'}"]).data
    if not (source / "chat" / "index").exists():
        end("index", str(source / "chat"), "--tokenizer", str(source / "tokenizer"))
    index = open_index(source / "chat")
    told = "\n".join(sample_lines(index, 2, main_data))
    assert "<|vision_start|><6 visual><|vision_end|>What is this?<|im_end|>" in told
    assert told.endswith("<|im_start|>assistant\n[[digit 2<|im_end|>\n]]")
    assert any("text tokens a sample" in line for line in source_lines("chat", index))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["resume"],
        ["resume", "run", "--nope"],
        ["checkpoint"],
        ["checkpoint", "list"],
        ["checkpoint", "list", "run", "extra=1"],
        ["index", "folder"],
    ],
)
def test_a_command_that_is_none_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert end(*arguments) == 2
    assert "usage: triptych" in capsys.readouterr().err


def test_a_run_without_checkpoints_is_not_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end("checkpoint", "list", str(tmp_path)) == 1
    assert end("checkpoint", "verify", str(tmp_path)) == 1
    assert capsys.readouterr().out.count("has no checkpoint") == 2
    assert end("checkpoint", "export", str(tmp_path), str(tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()
