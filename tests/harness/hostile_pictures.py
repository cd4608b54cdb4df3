"""The process that looks at pictures, with a decoder that bytes can hang or crash."""

import os
import time
from typing import Any

from data.index import probe_child

HANGS, CRASHES = b"hangs the decoder", b"crashes the decoder"


def start_hostile(start_child: Any) -> Any:
    """`start_child` as it starts this module instead."""
    return lambda module, *arguments, **options: start_child(__name__, *arguments, **options)


def _image_size(image_size: Any) -> Any:
    def look(data: bytes) -> tuple[int, int]:
        if data.endswith(HANGS):
            time.sleep(600)
        if data.endswith(CRASHES):
            os._exit(11)
        return image_size(data)

    return look


if __name__ == "__main__":
    probe_child.image_size = _image_size(probe_child.image_size)
    probe_child.main()
