"""A loaded checkpoint against transformers' own loader, and what a plain folder says about answers and pictures."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.answering.conversation import printable
from launch.answering.generate import generate
from launch.answering.loaded import Loaded, load
from launch.checkpoints.export import export
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


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("preprocessor_config.json", {"size": [1, 2]}, r"size is \[1, 2\]; a JSON object"),
        ("preprocessor_config.json", {"min_pixels": "3136"}, "min_pixels is '3136'; a whole number"),
        ("preprocessor_config.json", {"size": {"longest_edge": 0}}, r"size\.longest_edge is 0"),
        ("preprocessor_config.json", {"min_pixels": 6272, "max_pixels": 3136}, "6272.*3136"),
        ("processor_config.json", {"image_processor": [1]}, r"image_processor is \[1\]"),
        ("generation_config.json", {"eos_token_id": "2"}, "eos_token_id is '2'; a whole number"),
        ("generation_config.json", {"eos_token_id": [2, "3"]}, r"eos_token_id is \[2, '3'\]; a list of whole numbers"),
        ("tokenizer.json", {"model": 1}, "cannot be read as a tokenizer"),
    ],
    ids=str,
)
def test_a_broken_file_is_named(file: str, content: dict, said: str, exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hf"
    shutil.copytree(exported, copy)
    if file == "processor_config.json":
        (copy / "preprocessor_config.json").unlink()
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{copy / file}.*{said}"):
        load(copy, "cpu")


def test_a_head_that_differs_from_what_it_is_tied_to_is_refused(exported: Path, tmp_path: Path) -> None:
    """transformers would compute with that head, whatever config.json says of ties."""
    copy = tmp_path / "hf"
    shutil.copytree(exported, copy)
    stored = load_file(copy / "model.safetensors")
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"] + 1}, copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight is another tensor than model\.embed_tokens\.weight"):
        load(copy, "cpu")


def test_a_folder_of_several_dtypes_is_what_transformers_makes_of_it(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hf"
    shutil.copytree(exported, copy)
    stored = load_file(copy / "model.safetensors")
    save_file(stored | {"model.norm.weight": stored["model.norm.weight"].half()}, copy / "model.safetensors")
    ours = load(copy, "cpu").model
    theirs = type(ours).from_pretrained(copy).state_dict()
    for name, value in ours.state_dict().items():
        assert value.dtype == theirs[name].dtype == torch.float32 and torch.equal(value, theirs[name]), name
