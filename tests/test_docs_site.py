"""The site of docs/: strict, so without a broken link, and every page in its navigation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parent.parent


def _pages(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from _pages(inner)


def test_every_page_is_in_the_navigation_once() -> None:
    named = list(_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_site_is_built_without_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))  # a warning would abort it
    page = (tmp_path / "stages.html").read_text()
    assert "<table>" in page and 'href="recipes.html"' in page
    # A list or table that Markdown took for prose, as it wants an empty line before it.
    for path in tmp_path.glob("*.html"):
        assert not [line for line in path.read_text().splitlines() if line.startswith(("- ", "<p>|", "<p>```"))], (
            path.name
        )
