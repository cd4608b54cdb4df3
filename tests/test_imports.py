"""Which folder may import which: read from the source, so that imports inside functions count as well."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("train", "model", "data", "parallel", "launch")
MAY_IMPORT = {
    "parallel": set(),
    "data": set(),
    "model": {"parallel"},
    "train": {"model", "data", "parallel"},
    "launch": {"train", "model", "data", "parallel"},
}
# Libraries that few files know. A folder stands for all its files.
ONLY_IN = {
    "megatron": ("parallel/", "model/", "data/index/mmap_text.py"),
    "deepspeed": ("parallel/zero.py",),
    "omegaconf": ("train/resolve.py", "train/__main__.py"),
    "hydra": ("train/resolve.py", "train/__main__.py"),
    "dacite": ("train/resolve.py",),
    "transformers": ("launch/answering/score.py", "launch/answering/loaded.py", "data/samples/tokenizer.py"),
    "wandb": ("train/sinks.py",),
    "tensorboard": ("train/sinks.py",),
    "jinja2": ("launch/pages/report.py", "launch/pages/page.py"),
}
# Packages of data/, lowest first: each may import those before it. Modules of data/ itself are below all of them, and
# data.samples, which makes sources, is above.
LEVELS = ("store", "visual", "encoding", "formats", "index", "plan", "loading", "samples")
NEVER = {"data": ("torch.distributed",)}
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(source: str) -> set[str]:
    """Full names of the modules that `source` imports, `from a import b` as both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def faults(path: str, source: str) -> list[str]:
    """What the file at `path` (relative to the root) imports and must not."""
    folder = path.split("/")[0]
    found = []
    for name in sorted(imported(source)):
        top = name.split(".")[0]
        if top in FOLDERS and top != folder and top not in MAY_IMPORT[folder]:
            found.append(f"{folder} imports {name}")
        if top in ONLY_IN and not path.startswith(ONLY_IN[top]):
            found.append(f"{name} belongs to {', '.join(ONLY_IN[top])}")
        if folder == "data" and top == "data" and _level(name.split(".")) > _level(path.removesuffix(".py").split("/")):
            found.append(f"{path} imports {name}, which is above it")
        found += [f"{folder} imports {name}" for banned in NEVER.get(folder, ()) if name.startswith(banned)]
    return found


def _level(parts: list[str]) -> int:
    # What a recipe says of a package (its config.py) is part of data/config.py.
    packaged = len(parts) > 1 and parts[1] in LEVELS and "config" not in parts
    return LEVELS.index(parts[1]) if packaged else -1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert faults(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("parallel/grid.py", "import model.config"),
        ("model/vlm.py", "def f():\n    from data.types import PackedRow"),
        ("data/plan/plan.py", "from torch import distributed"),
        ("data/plan/plan.py", "import torch.distributed as dist"),
        ("data/store/oss.py", "from data.index.file import Index"),
        ("data/child.py", "from data.store.store import open_store"),
        ("train/step.py", "import launch.cli"),
        ("train/step.py", "from megatron.core import parallel_state"),
        ("parallel/groups.py", "import deepspeed"),
        ("launch/checkpoints/export.py", "from omegaconf import OmegaConf"),
        ("train/typecheck.py", "import hydra"),
    ],
)
def test_a_planted_import_is_found(path: str, source: str) -> None:
    assert faults(path, source)


def test_nothing_of_ours_shadows_the_standard_library() -> None:
    assert not set(FOLDERS) & set(sys.stdlib_module_names)


def test_the_folders_are_all_of_the_code() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {*FOLDERS, "tests"}
