"""Where each part of a model gets its first weights: the one reading of `init` that checks, loader and report share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from train.config import RunConfig

if TYPE_CHECKING:
    from model.part_folder import PartFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One origin of weights, by the recipe's key under `init`."""

    kind: Literal["from_run", "from_hf", "language", "vision", "fresh"]
    where: str | None = None
    """A folder; None for what is drawn at random."""

    def __str__(self) -> str:
        return f"init.{self.kind}={self.where}" if self.where else "drawn at random"


def part_sources(run: RunConfig) -> dict[str, Source]:
    """The source of every part of the run's model.

    `init.language`, `init.vision` and `init.fresh` speak for the parts they name, `init.from_run` or `init.from_hf` for
    all others; what nothing speaks for is drawn. A recipe in which two speak for one part never comes here
    (train/crosscheck.py).
    """
    init = run.init
    rest = Source(kind="fresh")
    if init.from_run:
        rest = Source(kind="from_run", where=init.from_run)
    elif init.from_hf:
        rest = Source(kind="from_hf", where=init.from_hf)
    found = dict.fromkeys(run.model.parts, rest)
    if init.language:
        found["language"] = Source(kind="language", where=init.language)
    if init.vision and "vision" in found:
        found["vision"] = Source(kind="vision", where=init.vision)
    return found | {part: Source(kind="fresh") for part in init.fresh if part in found}


def parts_by_source(run: RunConfig) -> dict[Source, tuple[str, ...]]:
    """The same the other way round, each source once."""
    found: dict[Source, tuple[str, ...]] = {}
    for part, source in part_sources(run).items():
        found[source] = (*found.get(source, ()), part)
    return found


def open_folder(run: RunConfig, source: Source, parts: tuple[str, ...]) -> "PartFolder":
    """A source that is a Hugging Face folder, held to the model by its config and its tensors' headers.

    Raises:
        ValueError: it does not fit.
    """
    from model.clip import open_clip  # these bring torch along, which most looks at a recipe do without
    from model.part_folder import open_language, open_whole

    assert source.where is not None
    if source.kind == "language":
        return open_language(source.where, run.model)
    if source.kind == "vision":
        return open_clip(source.where, run.model, run.init.accept_activation)
    return open_whole(source.where, run.model, parts)
