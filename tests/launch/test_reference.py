"""docs/reference.md is what the typed configs say."""

import dataclasses
import re
import typing

from launch.reference import PAGE, page
from train.config import RunConfig
from train.typecheck import check_types


def test_the_page_is_that_of_the_configs() -> None:
    assert PAGE.read_text() == page(), "run `python -m launch.reference`"


def test_every_key_on_the_page_is_one_of_a_recipe() -> None:
    """By the code that checks recipes: a group of nothing lacks exactly the keys without a default."""
    keys = re.findall(r"^\| `([^`]+)` \| [^|]* \| ([^|]*) \|", page(), flags=re.M)
    _, faults = check_types({}, RunConfig)
    needed = {fault.split(" ", 1)[0] for fault in faults}
    kinds = typing.get_type_hints(RunConfig)
    told = {key for key, default in keys if "." not in key and not default.strip()}
    assert told == {key for key in needed if not dataclasses.is_dataclass(kinds[key])}


def test_every_key_says_what_it_is_for() -> None:
    silent = re.findall(r"^\| `([^`]+)` \| [^|]* \| [^|]* \|  \|$", page(), flags=re.M)
    assert silent == [], "write a docstring under these fields"
    groups = re.findall(r"^## (.+)\n\n\n", page(), flags=re.M)
    assert groups == []
