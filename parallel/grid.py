"""Rank arithmetic: which (data, tensor, pipeline) coordinates a rank has. No torch, so planners can ask too."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A world of `world_size` ranks; tensor varies fastest, then data, then pipeline (megatron-core's order)."""

    world_size: int
    tp_size: int
    pp_size: int

    def __post_init__(self) -> None:
        assert self.world_size % (self.tp_size * self.pp_size) == 0, "ParallelConfig.data_size refuses this earlier"

    @property
    def dp_size(self) -> int:
        return self.world_size // (self.tp_size * self.pp_size)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(dp_rank, tp_rank, pp_rank) of a global rank."""
        return (rank // self.tp_size) % self.dp_size, rank % self.tp_size, rank // (self.tp_size * self.dp_size)

    def rank(self, *, dp: int, tp: int, pp: int) -> int:
        return (pp * self.dp_size + dp) * self.tp_size + tp
