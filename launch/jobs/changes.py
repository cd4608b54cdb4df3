"""What differs between the recipe a run was saved with and the one it goes on with, and what of that may differ."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from train.config import RunConfig

# What may change from one start to the next without another word: where and how fast a run goes, not what it learns.
FREE = (
    "run_dir",
    "resume",
    "new_segment",
    "stop_after_steps",
    "parallel.",
    "checkpoint.",
    "log.",
    "evaluate.",
    "profile.",
    "data.oss",  # how the store is reached; what lies there is compared with the index
    "data.prefetch_steps",
    "data.workers",
    "data.sample_seconds",
    "data.bad_share",
    "data.bad_in_row",
    "data.tokenizer",  # only its place: the index refuses another tokenizer
    "data.video.timeout_seconds",
    "data.video.timeout_per_second",
    "data.video.memory_bytes",
    "data.video.cache_dir",
    "data.video.cache_bytes",
)
# What no word allows: the commit does not fit it.
_NEVER = {
    ("data.seed", "data.run_length"): "it is the order of samples itself, in which the run counts those it has used",
    tuple(
        f"model.{part}.{size}"
        for part, sizes in {
            "language": "hidden_size num_layers num_heads num_kv_heads ffn_size vocab_size head_size tie_embeddings",
            "vision": "depth embed_dim num_heads mlp_ratio in_channels patch_size temporal_patch_size "
            "spatial_merge_size",
        }.items()
        for size in sizes.split()
    ): "the checkpoint has tensors of other shapes",
    ("stage.trainable",): "the checkpoint has optimizer state for other parts; that is another stage",
}
GROUPS = {
    "layout": ("parallel.", "processes", "replicas"),
    "data": ("data.",),
    "rates": ("stage.", "optimizer."),
    "model": ("model.", "precision", "seed", "init."),
    "the run": ("",),
}
"""Kinds of changes by how their keys begin, in the order in which they are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One value that is another one than in the saved recipe."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.was} -> {self.now}"

    @property
    def is_free(self) -> bool:
        """Whether it decides neither what is learned nor in which order data comes."""
        # Shards and indexes may move: the index is compared with the checkpoint's.
        moved = self.key.startswith("data.sources.") and self.key.endswith((".path", ".index"))
        return self.key.startswith(FREE) or (moved and "absent" not in (self.was, self.now))

    @property
    def never(self) -> str | None:
        """Why nothing allows it, if that is so."""
        return next((why for keys, why in _NEVER.items() if any(_is_of(self.key, key) for key in keys)), None)

    @property
    def allowed_by(self) -> str:
        """What `--allow` has to name: the part of the recipe it belongs to."""
        parts = self.key.partition("[")[0].split(".")
        return ".".join(parts[:2])

    @property
    def group(self) -> str:
        """The first of GROUPS that it is of."""
        return next(name for name, beginnings in GROUPS.items() if self.key.startswith(beginnings))

    def is_allowed(self, allow: Sequence[str]) -> bool:
        """Whether one of `allow` names it, or what it is part of."""
        return any(_is_of(self.key, named) for named in allow)


def changes(saved: RunConfig, asked: RunConfig) -> Iterator[Change]:
    """Every value that differs. Sources go by their names, wherever they stand in their list."""
    before, after = flatten(dataclasses.asdict(saved)), flatten(dataclasses.asdict(asked))
    for key in sorted({*before, *after}):
        was, now = before.get(key, "absent"), after.get(key, "absent")
        if was != now:
            yield Change(key=key, was=was, now=now)
    lists = [[source.name for source in run.data.sources] for run in (saved, asked)]
    if lists[0] != lists[1] and sorted(lists[0]) == sorted(lists[1]):
        yield Change(key="data.sources", was=", ".join(lists[0]), now=", ".join(lists[1]))


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; items of lists by their name, or their place where they have none."""
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [
            (f"{path}.{item['name']}" if isinstance(item, Mapping) and "name" in item else f"{path}[{place}]", item)
            for place, item in enumerate(value)
        ]
    else:
        return {path: value}
    return {key: leaf for name, item in items for key, leaf in flatten(item, name).items()}


def _is_of(key: str, named: str) -> bool:
    return key == named or key.startswith((f"{named}.", f"{named}["))
