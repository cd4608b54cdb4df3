"""A Hugging Face folder that gives one part of the model, and what of it is left behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.config import ModelConfig
from model.hf_config import check_sizes, config_from_hf
from model.hf_read import HEAD, PieceReader, head_problems, open_hf, refuse
from model.hf_weights import Piece, hf_pieces, published_name
from model.tensor_folder import TensorFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class PartFolder:
    """Opened weights of a part (or of several, for a whole Qwen2-VL folder)."""

    reader: PieceReader
    dropped: tuple[str, ...]
    """Tensors of the folder that the model does not take."""
    differs: tuple[str, ...] = ()
    """What the folder's own model computes otherwise than ours, in words."""


def left_behind(folder: TensorFolder, table: Mapping[str, tuple[Piece, ...]]) -> tuple[str, ...]:
    """Names of the tensors that no piece of `table` is made of."""
    taken = {piece.hf_name for pieces in table.values() for piece in pieces}
    return tuple(name for name in folder.names() if name not in taken)


def open_whole(folder: str | Path, config: ModelConfig, parts: Sequence[str]) -> PartFolder:
    """`parts` out of a Qwen2-VL folder that holds this very model, or out of a plain Qwen2 one.

    Raises:
        ValueError: as `check_sizes` and `open_hf`.
    """
    check_sizes(folder, config, parts)
    reader = open_hf(folder, config, parts)
    return PartFolder(reader=reader, dropped=left_behind(reader.folder, reader.table))


def open_language(folder: str | Path, config: ModelConfig) -> PartFolder:
    """The language part out of a Qwen2 causal LM folder, or out of a Qwen2-VL folder whatever its tower is.

    Raises:
        ValueError: another size, rotary base or epsilon, a vocabulary of another size, a head that one of the two ties
            to the embedding and the other does not or that is not what it is tied to, or tensors that do not fit; with
            both values or all names.
    """
    theirs, ours = config_from_hf(folder, config.name).language, config.language
    if theirs.vocab_size != ours.vocab_size:
        raise ValueError(
            f"{folder} has {theirs.vocab_size} embeddings and model.language.vocab_size is {ours.vocab_size}; rows are "
            f"neither cut nor invented, set model.language.vocab_size={theirs.vocab_size}"
        )
    check_sizes(folder, config, ("language",))
    opened = TensorFolder(folder, published_name)
    table = {name: pieces for name, pieces in hf_pieces(config).items() if name.startswith("language.")}
    reader = PieceReader(opened, table)
    dropped = left_behind(opened, table)
    # A head beside tied embeddings is left behind only where it is the embedding again.
    strange = [
        f"no place for {name} {opened.shape(name)}"
        for name in dropped
        if name != HEAD and not name.startswith("visual.") and not name.endswith(".inv_freq")
    ]
    refuse(folder, config, reader.problems() + head_problems(opened, config) + strange)
    differs = []
    if theirs.max_positions != ours.max_positions:
        differs.append(f"max_position_embeddings is {theirs.max_positions} there and {ours.max_positions} here")
    return PartFolder(reader=reader, dropped=dropped, differs=tuple(differs))
