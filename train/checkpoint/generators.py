"""Random states of a rank in a commit: those of torch, Python and numpy, without pickle.

A step draws nothing: there is no dropout, data order is arithmetic, and weights are drawn by name. Whoever comes to
draw something goes on, on the same layout, with the numbers that an uninterrupted run would have had. On another there
are no such numbers, as ranks are others; states then follow from seed, step and place, as they do at a run's start.

About 16 kB for each rank, in a safetensors file of its own that no reader of weights opens.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from train.checkpoint.boxes import Chunk
from train.checkpoint.commits import Commit, place_of
from train.checkpoint.tensors import TensorReader

if TYPE_CHECKING:
    from parallel.groups import Groups


def state_file(rank: int) -> str:
    """The file of a rank's states. It does not end as files of the model's tensors do."""
    return f"random.{rank:05d}.state"


def states(groups: "Groups") -> list[Chunk]:
    """The states of this rank's generators as they are now, and the layout they belong to."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    found = {
        "layout": _layout(groups),
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*legacy["state"]["key"].tolist(), legacy["state"]["pos"], legacy["has_gauss"]]),
        "numpy_gauss": torch.tensor([legacy["gauss"]], dtype=torch.float64),
    }
    if groups.device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(groups.device)
    return [
        Chunk(name=f"random.{name}", whole=tuple(tensor.shape), offset=(0,), data=tensor)
        for name, tensor in found.items()
    ]


def set_states(commit: Commit | None, groups: "Groups", seed: int, step: int) -> bool:
    """Set this rank's generators to what the commit has of it, if that is of the same layout; whether it was.

    Otherwise they follow from `seed`, `step` and the rank's place: ranks that share weight matrices draw alike.
    """
    name = state_file(groups.rank)
    if commit is not None and name in commit.files:
        reader = TensorReader({name: place_of(commit.path, name, commit.files[name])})
        saved = {key.removeprefix("random."): reader.read(key) for key in reader.names()}
        if torch.equal(saved["layout"], _layout(groups)) and ("cuda" in saved) == (groups.device.type == "cuda"):
            _set(saved, groups)
            return True
    drawn = np.random.SeedSequence([seed, step, groups.dp_rank, groups.pp_rank])
    ours, theirs, torchs = (int(word) for word in drawn.generate_state(3, np.uint32))
    random.seed(ours)
    np.random.seed(theirs)
    torch.manual_seed(torchs)
    return False


def _layout(groups: "Groups") -> Tensor:
    """What has to be the same: the world, the axes, and the rank's number in them."""
    return torch.tensor([groups.world_size, groups.dp_size, groups.tp_size, groups.pp_size, groups.rank])


def _set(saved: dict[str, Tensor], groups: "Groups") -> None:
    version, *words = saved["python"].tolist()
    random.setstate((version, tuple(words), next(iter(saved["python_gauss"].tolist()), None)))
    *key, pos, has_gauss = saved["numpy"].tolist()
    of_numpy = ("MT19937", np.array(key, dtype=np.uint32), pos, has_gauss, saved["numpy_gauss"].item())
    np.random.set_state(of_numpy)
    torch.set_rng_state(saved["torch"])
    if "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"], groups.device)


@contextmanager
def undisturbed(groups: "Groups") -> Iterator[None]:
    """Whatever is drawn within leaves this rank's generators as they were."""
    saved = {chunk.name.removeprefix("random."): chunk.data.clone() for chunk in states(groups)}
    try:
        yield
    finally:
        _set(saved, groups)
