"""A loaded checkpoint against transformers' own loader, and what a plain folder says about answers and pictures."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from launch.conversation import printable
from launch.export import export
from launch.generate import generate
from launch.loaded import Loaded, load
from tests.data.conftest import IMAGE
from tests.launch.conftest import TOKENS, ask, plainly, prompt_of, talk_of
from train.config import RunConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_checkpoint_is_the_model_that_its_export_is(
    loaded: Loaded, words: RunConfig, exported: Path, tmp_path: Path
) -> None:
    """transformers' own loader is the reference: weights, tables that no file holds, and logits."""
    alone = load(words.run_dir, "cpu")
    pairs = [(loaded, exported), (alone, export(words.run_dir, tmp_path / "hf")), (load(exported, "cpu"), exported)]
    for ours, theirs in pairs:
        reference = type(ours.model).from_pretrained(theirs)
        for kind in ("state_dict", "named_buffers"):
            one, other = dict(getattr(ours.model, kind)()), dict(getattr(reference, kind)())
            assert one.keys() == other.keys() and one
            assert all(torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)
        ids = torch.arange(40)[None]
        with torch.inference_mode():
            assert torch.equal(ours.model(input_ids=ids).logits, reference(input_ids=ids).logits)
    assert alone.model.config.model_type == "qwen2"
    assert ask(talk_of(alone), "What?") == plainly(alone, prompt_of(alone, [{"role": "user", "content": "What?"}], []))


def test_answers_from_a_checkpoint_are_those_of_its_folders(
    seeing: RunConfig, loaded: Loaded, exported: Path, media: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    nested = tmp_path / "nested"
    Qwen2VLForConditionalGeneration.from_pretrained(exported).save_pretrained(nested)
    assert "text_config" in json.loads((nested / "config.json").read_text())
    for name in ("tokenizer.json", "preprocessor_config.json"):
        shutil.copy(exported / name, nested / name)
    (checkpoint,) = (Path(seeing.run_dir) / "checkpoints").iterdir()
    answers = set()
    for one in (loaded, load(checkpoint, "cpu"), load(exported, "cpu"), load(nested, "cpu")):
        assert one.image == IMAGE and one.end == loaded.end
        talk = talk_of(one)
        first = ask(talk, "What is this?")
        talk.show("image", media["one.png"])
        answers.add((first, ask(talk, "left or right?")))
    assert len(answers) == 1


def test_an_answer_ends_at_what_generation_config_lists(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hf"
    shutil.copytree(exported, copy)
    usual = load(copy, "cpu")
    prompt = prompt_of(usual, [{"role": "user", "content": "What is this?"}], [])
    ids = generate(usual.model, [prompt], end=usual.end, pad=0, most=TOKENS)[0]
    listed = ids[4]
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [listed]}))
    stopped = load(copy, "cpu")
    assert set(stopped.end) == {listed, usual.tokenizer.ids.im_end, usual.tokenizer.ids.end_of_text}
    talk = talk_of(stopped)
    assert ask(talk, "What is this?") == printable(stopped.tokenizer.decode(ids[: ids.index(listed)]))
    assert talk.cut is None


def test_picture_budgets_are_read_in_either_words(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hf"
    shutil.copytree(exported, copy)
    (copy / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 784, "longest_edge": 3136}}))
    assert (load(copy).image.min_pixels, load(copy).image.max_pixels) == (784, 3136)
    said = {"image_processor": {"size": {"shortest_edge": 1568, "longest_edge": 6272}}}
    (copy / "preprocessor_config.json").unlink()
    (copy / "processor_config.json").write_text(json.dumps(said))
    found = load(copy)
    assert (found.image.min_pixels, found.image.max_pixels) == (1568, 6272)
    assert found.video.max_pixels == 6272, "a frame is no larger than a picture"
