"""A folder of safetensors, read tensor by tensor without its bytes staying in memory.

Only safetensors are read: the older `.bin` files are pickles, which run code of whoever wrote them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from model.json_file import read_json

INDEX_FILE = "model.safetensors.index.json"
WHOLE_FILE = "model.safetensors"


class TensorFolder:
    """Names, shapes and dtypes of a folder's tensors, and the bytes of one at a time.

    Args:
        folder: has model.safetensors, or shards and their index.
        rename: gives the name that a stored one goes by here.

    Raises:
        ValueError: no safetensors, a shard that is absent or damaged, or two tensors that go by one name.
    """

    def __init__(self, folder: str | Path, rename: Callable[[str], str] = str) -> None:
        self.path = Path(folder)
        self._place: dict[str, tuple[str, str]] = {}
        self._shape: dict[str, tuple[int, ...]] = {}
        self._dtype: dict[str, str] = {}
        for file in self._files():
            with _mapped(self.path / file) as opened:
                for stored in opened.keys():  # noqa: SIM118 - not a dict
                    name = rename(stored)
                    if name in self._place:
                        raise ValueError(f"{self.path / file} holds {stored}, which {self._place[name]} holds too")
                    view = opened.get_slice(stored)
                    self._place[name] = (file, stored)
                    self._shape[name] = tuple(view.get_shape())
                    self._dtype[name] = view.get_dtype()

    def names(self) -> list[str]:
        return list(self._place)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape[name]

    def dtype(self, name: str) -> str:
        """As safetensors spells it: F32, BF16, F16, I32, ..."""
        return self._dtype[name]

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """One tensor, to be indexed with slices; what they give lies in the file and must be copied before leaving.

        Each call maps the file anew, about a millisecond: pages that were read count as memory of this process until
        their file is unmapped, so a mapping that stayed would hold the shard twice.
        """
        file, stored = self._place[name]
        with _mapped(self.path / file) as opened:
            yield opened.get_slice(stored)

    def _files(self) -> list[str]:
        index = self.path / INDEX_FILE
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
                raise ValueError(f"{index} has no weight_map of tensor names to files")
            files = sorted(set(weight_map.values()))
            strange = [name for name in files if Path(name).name != name]
            if strange:
                raise ValueError(f"{index} names files outside of its folder: {strange[:3]}")
        elif (self.path / WHOLE_FILE).is_file():  # CLIP folders often hold the same weights for other libraries too
            files = [WHOLE_FILE]
        else:
            files = sorted(path.name for path in self.path.glob("*.safetensors"))
        absent = [name for name in files if not (self.path / name).is_file()]
        if absent or not files:
            raise ValueError(
                f"{self.path} lacks {', '.join(absent) or 'any *.safetensors file'}; pickled .bin weights are not "
                "read, convert them with transformers' save_pretrained first"
            )
        return files


@contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    try:
        opened = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    with opened as tensors:
        yield tensors
