"""docs/data.md names every setting of `data`, with its default, on the right side of the line."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

from data.config import DataConfig, ImageConfig, SourceConfig
from data.plan.plan import plan_identity

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text("utf-8")
NESTED = ("sources", "image", "video", "oss")


def test_every_setting_is_there_with_its_default() -> None:
    table = PAGE.partition("\n## All settings\n")[2]
    shown = dict(re.findall(r"^\| `(\w+)` \| *([^|]*?) *\|", table, re.MULTILINE))
    assert set(shown) == {field.name for field in fields(DataConfig)}
    for field in fields(DataConfig):
        if field.name not in NESTED:
            default = "" if field.default is MISSING else str(field.default)
            assert shown[field.name].strip("`").removesuffix(".0") == default.removesuffix(".0"), field.name
    for field in fields(SourceConfig):
        assert field.name in table.partition("`sources`")[2].partition("\n")[0]
    assert f"`min_pixels` ({ImageConfig().min_pixels}) and `max_pixels` ({ImageConfig().max_pixels})" in table


def test_the_line_parts_what_a_resumed_run_refuses() -> None:
    above, _, below = PAGE.partition("\n## All settings\n")[2].partition("\n| --- |")
    config = DataConfig(
        tokenizer="", sources=(SourceConfig(name="a", path=""),), tokens_per_row=1, patches_per_row=1, rows_per_step=1,
        window=1, seed=0,
    )  # fmt: skip
    decides = plan_identity(config, [SimpleNamespace(digest="")], {}).keys() - {"version"}
    assert set(re.findall(r"^\| `(\w+)` \|", above, re.MULTILINE)) == decides
    assert set(re.findall(r"^\| `(\w+)` \|", below, re.MULTILINE)) == {f.name for f in fields(DataConfig)} - decides
