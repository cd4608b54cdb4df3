"""A built model's weights out of a Hugging Face folder, as a run takes them (train/first_weights.py)."""

from pathlib import Path

from model.build import BuiltModel
from model.hf_read import fill_boxes
from model.part_folder import open_whole


def fill_from(built: BuiltModel, folder: str | Path) -> None:
    """Fill this rank's parameters."""
    origin = open_whole(folder, built.config, built.config.parts)
    fill_boxes(dict(built.module.named_parameters()), built.boxes, origin.reader)
