"""The model a stage starts from, as a Hugging Face folder: what "before stage 1" is scored with."""

from pathlib import Path

import torch
from torch import Tensor

from data.encoding.chat_template import CHAT_TEMPLATE
from model.canonical import Box
from model.hf_weights import canonical_shape, hf_pieces
from model.hf_write import write_hf
from model.init import fill_random
from train.config import RunConfig
from train.first_weights import open_origins


def export_start(run: RunConfig, out_folder: Path) -> Path:
    """Write the weights that the first step of `run` will see, without starting it.

    Parts come from where `init` says; those that are drawn are drawn as the trainer draws them, by (seed, name).
    Raises ValueError if a source cannot be used.
    """
    origins = {part: origin for origin in open_origins(run) for part in origin.parts}
    shapes = {name: canonical_shape(pieces) for name, pieces in hf_pieces(run.model).items()}

    def read(name: str) -> Tensor:
        reader = origins[name.partition(".")[0]].reader
        if reader is not None:
            return reader.read(name)
        shape = tuple(shapes[name])
        weight = torch.nn.Parameter(torch.empty(shape))
        box = Box(name=name, global_shape=shape, offset=(0,) * len(shape), shape=shape)
        fill_random(weight, box, run.seed, run.init.std)
        return weight.detach()

    image = run.data.image
    return write_hf(
        out_folder,
        run.model,
        read,
        run.data.tokenizer,
        dtype=torch.float32,
        min_pixels=image.min_pixels,
        max_pixels=image.max_pixels,
        chat_template=CHAT_TEMPLATE,
    )
