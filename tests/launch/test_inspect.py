"""`triptych inspect --html`: what the page shows of samples, and that nothing of a sample is alive in it."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.config import DataConfig
from data.encoding.tokenizer import load_tokenizer
from data.errors import SampleError
from data.formats.shards import write_shards
from data.index.build import build_index, open_index
from data.loading.media import PatchReader
from data.types import Grid, RawSample
from data.visual.images import image_grid, normalisation_table, patchify, resize_image, unpatched
from data.visual.pictures import decode_image
from launch.pages import paint
from launch.pages.look import sample_lines, visible
from launch.pages.page import write_page
from tests.data.conftest import IMAGE, VIDEO, clip_bytes, picture_bytes, train_tokenizer
from tests.harness.browser import INSTALL, find_browser, is_blank, shows
from tests.harness.html_page import HOSTILE, hostile_sample, read_page
from tests.harness.oss_server import ACCESS, SECRET
from tests.harness.oss_service import OssService
from tests.launch.commands import end
from train.resolve import compose

BOX = {"type": "box", "box": [28, 0, 56, 28], "scale": [56, 56]}
ANSWER = [{"type": "ref", "text": "it"}, BOX]


def chat(number: int, shown: list[dict], answer: object = "left", **more: object) -> RawSample:
    messages = [
        {"role": "user", "content": [*shown, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": answer},
    ]
    kept = {0: ("png", picture_bytes(56, 56, number)), 1: ("mp4", clip_bytes())}
    media = {part["media"]: kept[part["media"]] for part in shown if "media" in part}
    return RawSample(key=f"s{number}", content={"source": "chat", "messages": messages, **more}, media=media)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = train_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    composed = compose("quickstart_stage3").data
    return replace(composed, tokenizer=str(folder), image=IMAGE, video=VIDEO)


@pytest.fixture
def source(tmp_path: Path, config: DataConfig) -> Callable[..., Path]:
    def make(*samples: RawSample) -> Path:
        write_shards(tmp_path / "source", "source", samples, 10)
        build_index(tmp_path / "source", load_tokenizer(config.tokenizer))
        return tmp_path / "source"

    return make


def picture(url: str) -> np.ndarray:
    head, _, code = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))


def test_what_is_learnt_is_marked_and_pictures_are_those_of_the_row(
    source: Callable[..., Path], config: DataConfig, tmp_path: Path
) -> None:
    folder = source(chat(1, [{"type": "image", "media": 0}], ANSWER), chat(2, [{"type": "video", "media": 1}]))
    out = tmp_path / "page.html"
    write_page(out, "source", open_index(folder), config, samples=5)
    page = read_page(out.read_text("utf-8"))
    answer = "<|object_ref_start|>it<|object_ref_end|><|box_start|>(500,0),(999,500)<|box_end|><|im_end|>\u21b5\n"
    assert page.marked("learnt") == answer + "left<|im_end|>\u21b5\n"
    assert page.marked("control").count("<|im_start|>") == 6
    assert "image 0: 56x56, 4 tokens, stored 56x56" in page.text
    assert "video 1: 56x56, 4 frames, 8 tokens, stored 64x48" in page.text
    assert page.boxes == [(50.0, 0.0, 49.9, 50.0)] and "1: it (500, 0, 999, 500)" in page.text
    shown = [picture(url) for url in page.pictures]
    assert [one.shape for one in shown] == [(56, 56, 3)] * 5
    original = picture("data:image/png;base64," + base64.b64encode(picture_bytes(56, 56, 1)).decode())
    assert np.array_equal(shown[0], original)
    greys = [int(one.mean()) for one in shown[1:]]
    assert greys == sorted(greys) and greys[0] < 30 and greys[-1] > 200, "first to last frame of the clip"
    counts = re.findall(r"(\d+) tokens, (\d+) of them visual; (\d+) learnt", page.text)
    assert [visual for _, visual, _ in counts] == ["4", "8"]


def test_without_a_recipe_characters_are_marked(source: Callable[..., Path], tmp_path: Path) -> None:
    folder = source(chat(1, [{"type": "image", "media": 0}], ANSWER))
    out = tmp_path / "page.html"
    write_page(out, "source", open_index(folder), None, samples=5)
    page = read_page(out.read_text("utf-8"))
    assert page.marked("learnt").endswith("(500,0),(999,500)<|box_end|><|im_end|>\u21b5\n")
    assert len(page.boxes) == 1 and "--config-name shows tokens" in page.text


def test_boxes_go_to_the_picture_before_them(source: Callable[..., Path], config: DataConfig, tmp_path: Path) -> None:
    shown = [{**BOX, "scale": 1000}, {"type": "image", "media": 0}, BOX, {"type": "image", "media": 0}]
    out = tmp_path / "page.html"
    write_page(out, "source", open_index(source(chat(1, shown, [BOX]))), config, samples=1)
    page = read_page(out.read_text("utf-8"))
    assert page.boxes_of == [[(2.8, 0.0, 2.8, 2.8), (50.0, 0.0, 49.9, 50.0)], [(50.0, 0.0, 49.9, 50.0)]]


def test_hostile_samples_are_text(source: Callable[..., Path], config: DataConfig, tmp_path: Path) -> None:
    folder = source(hostile_sample(picture_bytes(56, 56)))
    for data in (config, None):
        out = tmp_path / "page.html"
        write_page(out, "source", open_index(folder), data, samples=1)
        page = read_page(out.read_text("utf-8"))
        assert page.foreign == []
        for text in HOSTILE:
            assert visible(text).replace("\n", "\u21b5\n") in page.text, text


def test_a_browser_finds_the_same(source: Callable[..., Path], config: DataConfig, tmp_path: Path) -> None:
    browser = find_browser(tmp_path)
    if browser is None:
        pytest.skip(f"no chromium here: {INSTALL}")
    out = tmp_path / "page.html"
    write_page(out, "source", open_index(source(hostile_sample(picture_bytes(56, 56)))), config, samples=1)
    seen, written = read_page(browser.dom(out)), read_page(out.read_text("utf-8"))
    assert seen.foreign == [] and seen.title == written.title
    assert seen.text.strip() == written.text.strip() and seen.pictures == written.pictures


def test_a_browser_shows_the_picture(source: Callable[..., Path], config: DataConfig, tmp_path: Path) -> None:
    browser = find_browser(tmp_path)
    if browser is None:
        pytest.skip(f"no chromium here: {INSTALL}")
    out, empty = tmp_path / "page.html", tmp_path / "empty.html"
    write_page(out, "source", open_index(source(chat(0, [{"type": "image", "media": 0}]))), config, samples=1)
    (url,) = read_page(out.read_text("utf-8")).pictures
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    screen = browser.screen(out)
    assert not is_blank(screen) and shows(screen, picture)
    empty.write_text("<p>text alone")
    assert is_blank(browser.screen(empty)) and not shows(browser.screen(empty), picture)


def test_a_page_stops_at_its_bytes_and_says_what_is_broken(
    source: Callable[..., Path], config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = source(*(chat(number, [{"type": "image", "media": 0}]) for number in range(4)))
    monkeypatch.setattr(paint, "MOST_BYTES", 30_000)
    out = tmp_path / "page.html"
    write_page(out, "source", open_index(folder), config, samples=4)
    page = read_page(out.read_text("utf-8"))
    assert sum(map(len, page.pictures)) <= 30_000 and len(page.pictures) == 2
    assert page.text.count("left out:") == 2


def test_what_cannot_be_painted_says_why(
    source: Callable[..., Path], config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise SampleError("picture cannot be decoded: <b>")

    monkeypatch.setattr(PatchReader, "read", broken)
    out = tmp_path / "page.html"
    write_page(out, "source", open_index(source(chat(1, [{"type": "image", "media": 0}]))), config, samples=1)
    page = read_page(out.read_text("utf-8"))
    assert "stored 56x56 picture cannot be decoded: <b>" in page.text and page.pictures == []
    assert page.marked("learnt") == "left<|im_end|>\u21b5\n"


def test_patches_give_back_the_picture_bit_for_bit() -> None:
    data = picture_bytes(61, 90, 3)
    grid = image_grid(61, 90, IMAGE)
    pixels = resize_image(decode_image(data), grid)
    assert np.array_equal(unpatched(patches_of(pixels, grid), grid, IMAGE), np.repeat(pixels, 2, axis=0))
    clip = np.random.default_rng(0).integers(0, 256, (4, 28, 56, 3), dtype=np.uint8)
    grid = Grid(time=2, height=28, width=56, patch_size=14, merge_size=2)
    assert np.array_equal(unpatched(patches_of(clip, grid), grid, IMAGE), clip)


def patches_of(frames: np.ndarray, grid: Grid) -> np.ndarray:
    out = np.empty((grid.num_patches, IMAGE.patch_dim), dtype=np.float32)
    patchify(frames, IMAGE, normalisation_table(IMAGE), out)
    return out


def test_a_trajectory_can_be_shown_in_lines(source: Callable[..., Path]) -> None:
    called = {"function": {"name": "tap", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "image", "media": 0}, {"type": "ref", "text": "it"}, BOX]},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "yes"},
    ]
    raw = RawSample(key="s", content={"messages": messages}, media={0: ("png", picture_bytes(56, 56))})
    told = "\n".join(sample_lines(open_index(source(raw)), 0, None))
    asked = "[image] <|object_ref_start|>it<|object_ref_end|> <|box_start|>(500,0),(999,500)<|box_end|>"
    assert told.endswith(f"asked: {asked}\n\ndone")


def test_what_cannot_be_seen_is_spelled() -> None:
    assert visible("a\u202eb\0\u200d\ue000\n") == "a<U+202E>b<U+0000>\u200d<U+E000>\n"
    assert visible("caf\u00e9 \U0001f600\ud800") == "caf\u00e9 \U0001f600<U+D800>"


def test_the_command_writes_the_page(
    source: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source(*(chat(number, [{"type": "image", "media": 0}]) for number in range(5)))
    out = tmp_path / "out.html"
    for arguments, entries in (([], 5), (["--samples", "2"], 2)):
        assert end("inspect", folder, "--html", out, *arguments) == 0
        assert f"wrote {out}" in capsys.readouterr().out
        page = read_page(out.read_text("utf-8"))
        assert [title for title in page.titles if title.startswith(("0: s0", "4: s4"))] == ["0: s0", "4: s4"]
        assert len(page.titles) == entries
    assert end("inspect", folder, "--html", out, "--samples", "0") == 2
    assert "at least 1" in capsys.readouterr().err


def test_a_source_in_object_storage_is_looked_at_as_a_folder_is(
    source: Callable[..., Path],
    config: DataConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = source(chat(1, [{"type": "image", "media": 0}], ANSWER))
    service = OssService()
    try:
        service.keys({ACCESS: {"secret": SECRET}})
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        for shard in folder.glob("*.tar"):
            service.put(f"mine/{shard.name}", shard.read_bytes())
        reached = ["--oss", f"endpoint={service.endpoint}", f"limiter.folder={tmp_path / 'limits'}"]
        where = ["oss://shards/mine", "--index", str(tmp_path / "far")]
        assert end("index", where[0], "--output", where[2], "--tokenizer", config.tokenizer, *reached) == 0
        capsys.readouterr()
        assert end("inspect", *where, "--sample", "0", "--html", str(tmp_path / "far.html"), *reached) == 0
        far = capsys.readouterr().out
        assert end("inspect", str(folder), "--sample", "0", "--html", str(tmp_path / "near.html")) == 0
        near = capsys.readouterr().out
    finally:
        service.stop()
    assert far.replace("oss://shards/mine", str(folder)).replace("far.html", "near.html") == near
    pages = [(tmp_path / name).read_text("utf-8") for name in ("far.html", "near.html")]
    assert pages[0].replace("oss://shards/mine", str(folder)) == pages[1]


def test_what_would_steer_a_terminal_is_spelled(source: Callable[..., Path]) -> None:
    raw = chat(1, [{"type": "image", "media": 0}], "\x1b[2J\x1b]0;owned\x07")
    told = "\n".join(sample_lines(open_index(source(replace(raw, key="k\x1b[31m"))), 0, None))
    assert "\x1b" not in told and "\x07" not in told and "k<U+001B>[31m" in told


def test_a_changed_shard_and_a_store_without_keys_are_one_line(
    source: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = source(chat(1, [{"type": "image", "media": 0}]))
    (shard,) = folder.glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    assert end("inspect", folder, "--sample", "0") == 2
    assert "restore the shard" in capsys.readouterr().err
    assert end("inspect", folder, "--html", tmp_path / "page.html") == 0
    assert "restore the shard" in read_page((tmp_path / "page.html").read_text("utf-8")).text
    for name in ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET"):
        monkeypatch.delenv(name, raising=False)
    capsys.readouterr()
    assert end("inspect", "oss://bucket/p", "--index", folder / "index", "--sample", "0", "--oss", "region=x") == 2
    told = capsys.readouterr().err
    assert "set OSS_ACCESS_KEY_ID" in told and "Traceback" not in told
    assert end("inspect", "--oss", "region=x", "oss://bucket/p") == 2
    assert "the source comes before --oss" in capsys.readouterr().err


def test_ctrl_c_is_one_word(source: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.pages.look.open_named", interrupt)
    assert end("inspect", "anywhere") == 130


def test_token_files_show_their_text(config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "What is this?"}\n{"text": "left"}\n')
    assert end("index", str(texts), "--tokenizer", config.tokenizer) == 0
    recipe = ("--config-name", "quickstart_stage3", f"data.tokenizer={config.tokenizer}")
    prefix = str(tmp_path / "texts")
    capsys.readouterr()
    assert end("inspect", prefix, "--sample", "0", *recipe) == 0
    told = capsys.readouterr().out
    assert "2 documents of tokens" in told and "[[" in told and "<|endoftext|>]]" in told
    assert end("inspect", prefix, "--sample", "2") == 2
    assert "samples 0 to 1, not 2" in capsys.readouterr().err
    assert end("inspect", prefix, "--html", str(tmp_path / "page.html")) == 2
    assert "no pictures" in capsys.readouterr().err
