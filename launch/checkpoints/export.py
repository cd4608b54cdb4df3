"""From a checkpoint to a Hugging Face folder, in one process: tensor by tensor, so a 72B model needs no 72B memory."""

from pathlib import Path

from data.encoding.chat_template import CHAT_TEMPLATE
from data.encoding.tokenizer import check_tokenizer, load_tokenizer
from model.hf_write import MAX_SHARD_BYTES, write_hf
from train.checkpoint.commits import Commit
from train.checkpoint.load import find_commit, read_tensors
from train.config import RunConfig
from train.resolve import from_yaml


def export(
    where: str | Path,
    out_folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write the weights of a run's newest usable checkpoint as a folder for transformers' `from_pretrained`.

    Every tensor keeps the dtype that it has in the checkpoint; config.json names the one that most weights have, and
    `from_pretrained` casts the others to it unless told otherwise.

    Args:
        where: a run's folder, or one checkpoint folder.
        out_folder: is created; must be empty.
        tokenizer: the tokenizer folder, if it moved since the run; None takes the recipe's.
        max_shard_bytes: of a file of weights; one such file is held in memory.

    Raises:
        ValueError: there is no usable checkpoint, transformers cannot express this model, or the tokenizer lacks
            tokens that every prompt is made of or has more than the model embeds.
    """
    commit = find_commit(where)
    run = run_of(commit)
    reader = read_tensors(commit.path)
    folder = tokenizer if tokenizer is not None else run.data.tokenizer
    # Else the folder would be written whole, and `triptych chat` refuse it.
    check_tokenizer(load_tokenizer(folder), run.model.language.vocab_size)
    return write_hf(
        out_folder,
        run.model,
        reader.read,
        folder,
        dtype=reader.dtype,
        min_pixels=run.data.image.min_pixels,
        max_pixels=run.data.image.max_pixels,
        chat_template=CHAT_TEMPLATE,
        max_shard_bytes=max_shard_bytes,
    )


def run_of(commit: Commit) -> RunConfig:
    """The run that wrote a checkpoint, from the recipe kept in it."""
    return from_yaml(commit.recipe)
