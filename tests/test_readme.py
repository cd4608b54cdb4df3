"""What README and docs tell people to type and to open exists."""

import re
import shlex
from pathlib import Path

import pytest

from launch.cli import _parser
from train.resolve import RECIPES, compose

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    "README.md", "CONTRIBUTING.md", "docs/install.md", "docs/first_run.md", "docs/recipes.md", "docs/stages.md",
    "docs/troubleshooting.md", "docs/architecture.md", "docs/model.md", "docs/data.md", "docs/data_format.md",
]  # fmt: skip
LINKING = [*PAGES, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in PAGES)]
_FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")
_LINK = re.compile(r"\]\((?!https?:)([\w./-]*)(?:#([\w-]+))?\)")
_LITERAL = re.compile(r"```.*?```|`[^`\n]*`|^ {4,}.*?$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"^ {4,}(\S.*)$|`([^`\n]+)`", re.MULTILINE)
COMMANDS = ("make", "triptych", "launch/torchrun.sh", "sbatch", "python")
PLACEHOLDERS = ("datasets/", "pretrained/", "runs/", "build/", ".venv", "SOURCE/", "SHARDS/", "index/")


def typed(page: str) -> list[list[str]]:
    """Every command on a page, split into words."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [" ".join((block or inline).split()) for block, inline in _CODE.findall(text)]
    words = [shlex.split(line, comments=True) for line in lines if line.split()[0] in COMMANDS and "|" not in line]
    return [line for line in words if len(line) > 1]


def all_typed() -> list[tuple[str, list[str]]]:
    return [(page, words) for page in PAGES for words in typed(page)]


def test_there_are_commands_to_check() -> None:
    kinds = {words[0] for _, words in all_typed()}
    assert kinds >= {"make", "triptych", "launch/torchrun.sh", "sbatch"}


@pytest.mark.parametrize(
    ("page", "words"), all_typed(), ids=lambda value: "_".join(value[:3]) if isinstance(value, list) else value
)
def test_a_command_exists(page: str, words: list[str]) -> None:
    if words[0] == "make":
        rules = (ROOT / "Makefile").read_text(encoding="utf-8")
        target = re.sub(r"^prove-.*", "prove-%", words[1])
        assert re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE), f"{page} names make {words[1]}"
    elif words[0] == "triptych":
        if "..." in words or len(words) == 2:
            return
        _, rest = _parser().parse_known_args(words[1:])
        assert all("=" in word for word in rest)
    elif words[0] in ("launch/torchrun.sh", "sbatch"):
        script = next(word for word in words if word.startswith("launch/"))
        assert (ROOT / script).is_file()
        name = words[words.index("--config-name") + 1]
        if name != "RECIPE":
            compose(name, [word for word in words[words.index(name) :] if "=" in word])
    else:
        assert words[1] == "-m"
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_a_file_that_is_named_is_there(page: str) -> None:
    named = set(_FILE.findall((ROOT / page).read_text(encoding="utf-8")))
    assert named
    missing = [name for name in named if not name.startswith(PLACEHOLDERS) and not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", LINKING)
def test_a_link_leads_somewhere(page: str) -> None:
    text = _LITERAL.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for name, anchor in _LINK.findall(text):
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {name}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{page} links to {name}#{anchor}"


def test_the_tour_names_files_of_every_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for folder in ("train", "parallel", "model", "data", "launch"):
        assert f"`{folder}/" in text
    assert RECIPES.is_dir()
