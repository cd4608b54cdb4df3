"""Defects of Hugging Face folders, read and written. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from tests.prove.planting import Mend, replace_name


def _swapped(first: str, second: str) -> Mend:
    """Export writes one tensor of a layer under the other's name."""
    import model.hf_write

    def make(to_hf: Any) -> Any:
        def planted(pieces: Any, tensor: Tensor) -> dict[str, Tensor]:
            swap = {first: second, second: first}
            found = to_hf(pieces, tensor)
            return {
                name: found[name.replace(key, swap[key])]
                if (key := next((k for k in swap if k in name), ""))
                else value
                for name, value in found.items()
            }

        return planted

    return replace_name(model.hf_write, "to_hf", make)


def exported_kv_swapped() -> Mend:
    """Key and value projections change places at export."""
    return _swapped("k_proj", "v_proj")


def exported_gate_up_swapped() -> Mend:
    """Gate and up projections change places at export."""
    return _swapped("gate_proj", "up_proj")


def vocabulary_shifted() -> Mend:
    """Every tensor rank but the first reads its rows of the vocabulary one row too early."""
    from model.hf_read import PieceReader

    def make(read_into: Any) -> Any:
        def planted(self: Any, target: Tensor, name: str, offset: Any) -> None:
            early = name.endswith("word_embeddings.weight") and offset[0] > 0
            read_into(self, target, name, (offset[0] - 1, *offset[1:]) if early else offset)

        return planted

    return replace_name(PieceReader, "read_into", make)


def mapping_kept() -> Mend:
    """Files stay mapped after a tensor was copied out of them."""
    from contextlib import contextmanager

    import model.tensor_folder

    kept: list[Any] = []

    def make(mapped: Any) -> Any:
        @contextmanager
        def planted(path: Any) -> Any:
            opened = mapped(path)
            kept.append(_Kept(opened.__enter__(), opened))
            yield kept[-1]

        return planted

    mend = replace_name(model.tensor_folder, "_mapped", make)

    def mend_all() -> None:
        mend()
        kept.clear()

    return mend_all


class _Kept:
    """An opened file and every slice that was taken out of it."""

    def __init__(self, tensors: Any, context: Any) -> None:
        self._tensors, self._context, self._parts = tensors, context, []  # type: ignore[var-annotated]

    def keys(self) -> Any:
        return self._tensors.keys()

    def get_slice(self, name: str) -> Any:
        view, parts = self._tensors.get_slice(name), self._parts

        class Slice:
            def get_shape(self) -> Any:
                return view.get_shape()

            def get_dtype(self) -> Any:
                return view.get_dtype()

            def __getitem__(self, where: Any) -> Tensor:
                parts.append(view[where])
                return parts[-1]  # type: ignore[no-any-return]

        return Slice()


def tied_copy_empty() -> Mend:
    """The second copy of a tied embedding is not read."""
    import model.hf_read

    def make(known: Any) -> Any:
        return lambda *arguments: ((target, box) for target, box in known(*arguments) if box.owner)

    return replace_name(model.hf_read, "_known", make)


def whole_tensors_read() -> Mend:
    """Every rank takes whole tensors out of the file and cuts its box afterwards."""
    import model.hf_read

    def make(cut: Any) -> Any:
        return lambda view, piece, where: cut(view[:], piece, where)

    return replace_name(model.hf_read, "_cut", make)


def shards_kept() -> Mend:
    """What was written stays in memory, until in the end the whole model does."""
    import model.hf_write

    kept: list[Any] = []

    def make(save_file: Any) -> Any:
        def planted(tensors: Any, *arguments: Any, **options: Any) -> None:
            kept.append(tensors)
            save_file(tensors, *arguments, **options)

        return planted

    mend = replace_name(model.hf_write, "save_file", make)

    def mend_all() -> None:
        mend()
        kept.clear()

    return mend_all


def flat_patch_embedding() -> Mend:
    """Export writes the patch embedding as the matrix that it is here."""
    import model.hf_weights

    def make(vision_pieces: Any) -> Any:
        def planted(*arguments: Any) -> Any:
            pieces = vision_pieces(*arguments)
            name = "vision.patch_embed.weight"
            (whole,) = pieces[name]
            return pieces | {name: (replace(whole, hf_shape=whole.shape),)}

        return planted

    return replace_name(model.hf_weights, "_vision_pieces", make)


def class_epsilon() -> Mend:
    """config.json says the epsilon that transformers' class has, not the one that published folders have."""
    import model.hf_config

    def make(hf_config: Any) -> Any:
        return lambda *arguments: hf_config(*arguments) | {"rms_norm_eps": 1e-5}

    return replace_name(model.hf_config, "hf_config", make)


def sizes_unread() -> Mend:
    """Import believes that a folder whose tensors fit computes the same."""
    import model.part_folder

    return replace_name(model.part_folder, "check_sizes", lambda _: lambda *_: None)


def tied_gradients_apart() -> Mend:
    """Each copy of a tied embedding is trained with its own gradient alone."""
    from tests.prove.step_defects import tied_reduction

    return tied_reduction()


Apply = Callable[[], Mend]
MODEL_WEIGHTS_PLANTS: dict[str, tuple[Apply, tuple[str, ...]]] = {
    "exported_kv_swapped": (exported_kv_swapped, ("round trip/TP1xPP1", "from_pretrained/untied")),
    "exported_gate_up_swapped": (exported_gate_up_swapped, ("round trip/TP1xPP1",)),
    "vocabulary_shifted": (vocabulary_shifted, ("round trip/TP2xPP1",)),
    "mapping_kept": (mapping_kept, ("import memory/one process",)),
    "tied_copy_empty": (tied_copy_empty, ("tied/TP1xPP2",)),
    "whole_tensors_read": (whole_tensors_read, ("import memory/TP2",)),
    "shards_kept": (shards_kept, ("export memory",)),
    "flat_patch_embedding": (flat_patch_embedding, ("golden/2b",)),
    "class_epsilon": (class_epsilon, ("golden/7b",)),
    "sizes_unread": (sizes_unread, ("refused folders",)),
    "tied_gradients_apart": (tied_gradients_apart, ("tied/TP1xPP2",)),
}
"""Each defect with the cases of the model proof of which at least one must fail with it."""
