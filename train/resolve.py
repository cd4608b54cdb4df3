"""The last place a DictConfig exists: a composed recipe goes in, a typed and checked RunConfig comes out."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dacite
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.config import DataConfig
from data.store.config import OssConfig
from train.config import EvaluateConfig, RunConfig
from train.crosscheck import cross_faults, world_faults
from train.typecheck import check_types

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

# A saved recipe is a whole Hydra config again: without these lines every process of a resumed run writes `outputs/`.
_SAVED_HEADER = """\
defaults:
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled
  - _self_
hydra:
  run: {dir: .}
  output_subdir: null
"""


_SHORT = {"init.from": "init.from_run"}
"""Keys by what a command line may call them; `from` can be no field of a dataclass."""


class RecipeError(ValueError):
    """A recipe that cannot be run: one line a fault, each with the numbers and what to change."""


def to_run_config(raw: DictConfig, world_size: int | None = None) -> RunConfig:
    """The typed run that `raw` describes; with `world_size` also checked against the number of processes.

    Raises RecipeError before anything is touched, naming every fault that can be known together.
    """
    try:
        plain = OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as fault:
        raise RecipeError(f"the recipe does not resolve: {fault}") from fault
    typed, faults = check_types(plain, RunConfig)
    _refuse(faults)
    try:
        run = dacite.from_dict(RunConfig, typed, dacite.Config(strict=True, cast=[tuple]))
    except ValueError as fault:  # a record's own check; dacite's faults are found above, with their paths
        raise RecipeError(f"the recipe cannot be run:\n  - {fault}") from fault
    _refuse([*cross_faults(run), *(world_faults(run, world_size) if world_size is not None else [])])
    return run


def compose(
    name: str, overrides: list[str] | None = None, *, folder: Path | None = None, world_size: int | None = None
) -> RunConfig:
    """The recipe `name` of `folder` (default: recipes/) with `key=value` overrides, as Hydra composes it.

    For tools and tests; a training process gets its DictConfig from `hydra.main`. Raises RecipeError.
    """
    folder = (folder or RECIPES).resolve()
    if not (folder / f"{name.removesuffix('.yaml')}.yaml").exists():
        raise RecipeError(f"there is no recipe {name} in {folder}{_near(name, folder)}")
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(folder), version_base=None):
            raw = hydra.compose(name, loosen(overrides or []))
    except (HydraException, ValueError) as fault:  # a group that is given a number is a ValueError to Hydra
        raise RecipeError(f"recipe {name} does not compose: {fault}") from fault
    return to_run_config(raw, world_size)


def oss_config(arguments: Sequence[str]) -> OssConfig:
    """What `data.oss` of a recipe would be with these `key=value`. Raises RecipeError."""
    try:
        return oss_from_plain(OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)), resolve=True))
    except (ValueError, OmegaConfBaseException) as fault:
        raise RecipeError(f"--oss: {fault}") from fault


def oss_from_plain(plain: Any) -> OssConfig:
    """What `dataclasses.asdict` made of one, wherever it has been since. Raises ValueError."""
    typed, faults = check_types(plain, OssConfig)
    if faults:
        raise ValueError("; ".join(faults))
    return dacite.from_dict(OssConfig, typed, dacite.Config(strict=True))


def evaluate_from_plain(plain: Any) -> EvaluateConfig:
    """What `dataclasses.asdict` made of one, wherever it has been since. Raises RecipeError."""
    typed, faults = check_types(plain, EvaluateConfig)
    _refuse(faults)
    return dacite.from_dict(EvaluateConfig, typed, dacite.Config(strict=True, cast=[tuple]))


def data_config(plain: Mapping[str, Any]) -> DataConfig:
    """`data` of a recipe as a checkpoint has it. Raises RecipeError."""
    typed, faults = check_types(dict(plain), DataConfig)
    _refuse(faults)
    return dacite.from_dict(DataConfig, typed, dacite.Config(strict=True, cast=[tuple]))


def loosen(arguments: list[str]) -> list[str]:
    """Command-line arguments with `key=value` turned into Hydra's `++key=value`: set it, present in the recipe or not.

    Plain Hydra refuses a key that the recipe leaves at its default (stage.tokens, parallel.split) and asks for `+`.
    With this an unknown key reaches our own check, which names close matches. Group choices (model=tiny) stay as they
    are: Hydra cannot force-add those. `init.from=RUN` is written out as the recipes have it.
    """
    groups = {entry.name for entry in RECIPES.iterdir() if entry.is_dir()}
    arguments = [_SHORT.get(key, key) + rest for key, rest in map(_key_of, arguments)]
    return [argument if _is_plain(argument, groups) else f"++{argument}" for argument in arguments]


def to_yaml(run: RunConfig) -> str:
    """The whole run as one YAML file that `python -m train --config-path FOLDER` starts again, without recipes/."""
    return _SAVED_HEADER + OmegaConf.to_yaml(_plain(dataclasses.asdict(run)))


def from_yaml(text: str) -> RunConfig:
    """The run that `to_yaml` wrote. Raises RecipeError."""
    raw = OmegaConf.create(text)
    if not isinstance(raw, DictConfig):
        raise RecipeError("a saved recipe must be a group of keys")
    for key in ("defaults", "hydra"):
        raw.pop(key, None)
    return to_run_config(raw)


def check_saved(text: str) -> None:
    """Refuse a saved recipe that tells Hydra anything but what `to_yaml` does: it could write files, or worse.

    Raises RecipeError.
    """
    found, ours = (OmegaConf.to_container(OmegaConf.create(each)) for each in (text, _SAVED_HEADER))
    assert isinstance(ours, dict)
    other = [str(key) for key in ours if not isinstance(found, dict) or found.get(key) != ours[key]]
    if other:
        raise RecipeError(f"the saved recipe has another {' and '.join(other)} than checkpoints are written with")


def _near(name: str, folder: Path) -> str:
    """Recipes that may be meant; NAME_8 is NAME, where 8 GPUs have no recipe of their own."""
    stem, _, count = name.rpartition("_")
    if count.isdigit() and (folder / f"{stem}.yaml").exists():
        return f"; {stem} is the recipe, and `triptych plan --config-name {stem} --gpus {count}` says whether it fits"
    close = difflib.get_close_matches(name, [path.stem for path in folder.glob("*.yaml")])
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _key_of(argument: str) -> tuple[str, str]:
    """(what stands before `=`, the rest with it)"""
    key, equals, value = argument.partition("=")
    return key, equals + value


def _is_plain(argument: str, groups: set[str]) -> bool:
    key = argument.split("=", 1)[0]
    # No key of a recipe has a slash: that is the folder of --config-path, which may have any name.
    marked = argument.startswith(("-", "+", "~"))
    return "=" not in argument or marked or "/" in key or key in groups or key.startswith("hydra")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _refuse(faults: list[str]) -> None:
    if faults:
        raise RecipeError("the recipe cannot be run:" + "".join(f"\n  - {fault}" for fault in faults))
