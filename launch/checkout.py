"""Start-up check: `train`, `model`, `data`, `parallel` and `launch` are this checkout's, not somebody's own folders.

Five short package names at the root read well and can be shadowed: a `data/` in the folder a run is started from, or on
PYTHONPATH, would be imported instead of ours, half of it at a time.
"""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("train", "model", "data", "parallel", "launch")


class CheckoutError(ValueError):
    """A package of this project would be loaded from somewhere else."""


def find_package(name: str) -> Path | None:
    """Folder that `import name` would load, None if there is none. Imports nothing."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def check_checkout(root: Path = ROOT) -> None:
    """Raises CheckoutError naming each package that does not resolve inside `root`, and what to do."""
    found = {name: find_package(name) for name in PACKAGES}
    wrong = {name: place for name, place in found.items() if place != root / name}
    if wrong:
        listed = "".join(f"\n  - import {name} gives {place or 'nothing'}" for name, place in wrong.items())
        raise CheckoutError(
            f"these packages do not come from {root}:{listed}\n"
            f"start from there (cd {root}), take the other folders off PYTHONPATH, or rename them; "
            "in a fresh clone run `make test` once, which installs it"
        )
