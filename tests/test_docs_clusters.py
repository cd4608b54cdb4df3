"""Commands, settings and the table of docs/clusters.md are as they are. `make prove-launch` follows the page."""

import re

from launch.cli import _parser
from launch.jobs.settings import settings
from parallel.config import ParallelConfig
from tests.harness.clusters_page import PAGE, commands
from train.resolve import compose


def test_every_command_is_one() -> None:
    lines = commands()
    programs = {line.split()[0] for line in lines}
    assert programs == {"triptych", "tail", "cat", "scancel", "NNODES=2"}
    for line in lines:
        words = line.split()
        if words[0] == "triptych":
            _, rest = _parser().parse_known_args(words[1:])
            assert all("=" in word for word in rest), line
        if "--config-name" in words:
            name = words[words.index("--config-name") + 1]
            nodes = int(words[words.index("--nodes") + 1]) if "--nodes" in words else 1
            overrides = [word for word in words[words.index(name) :] if re.match(r"[a-z_.]+=", word)]
            compose(name, overrides, world_size=8 * nodes)


def test_the_settings_are_those_that_ranks_get() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(each.name, each.value, each.reason) for each in settings(ParallelConfig())]


def test_the_rows_are_those_of_the_table() -> None:
    text = PAGE.read_text()
    shown = re.findall(r"^  (\w[\w ]*?) +ok ", text, re.MULTILINE)
    explained = [name for head in re.findall(r"^\| (\w[\w ,]*?) \|", text, re.MULTILINE) for name in head.split(", ")]
    axes = {"tensor", "data", "pipeline axis"}
    assert {name for name in shown if not name.endswith(" axis")} <= set(explained) and axes <= set(explained)
