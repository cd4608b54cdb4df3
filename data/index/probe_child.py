"""The process that looks at pictures, killed without regret: hostile bytes can crash or hang the decoders in it.

A request is a line on stdin, the JSON list of the pictures' lengths; their bytes lie one after the other in one of the
files that were handed down. For each picture a line goes to the other file, at once: [height, width], or the reason why
it has none. A line on stdout says that all are done, and the first one that the process is there.
"""

import contextlib
import json
import os
import sys

from data.child import keep_stdout, leave_with_parent, limit_memory
from data.errors import SampleError
from data.visual.pictures import decode_image, image_size

MEMORY_BYTES = 4 << 30  # several times the largest picture that is allowed, decoded


def look(data: bytes, decode: bool) -> tuple[int, int] | str:
    """(height, width) of a picture as shown, or why it has none; `decode` is whether its pixels are read as well."""
    try:
        size = image_size(data)
        if decode:
            decoded = decode_image(data)
            if (decoded.height, decoded.width) != size:
                return (
                    f"picture decodes to {decoded.height}x{decoded.width} pixels, its header says {size[0]}x{size[1]}"
                )
        return size
    except SampleError as error:
        return str(error)
    except MemoryError:
        return f"picture of {len(data)} bytes takes more than {MEMORY_BYTES >> 30} GiB to read"


def main() -> None:
    """Serve until the parent has gone."""
    leave_with_parent()
    limit_memory(MEMORY_BYTES)
    stdout = keep_stdout()
    pictures, replies, decode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "decode"
    with contextlib.suppress(BrokenPipeError):
        stdout.write(b"ready\n")
        for line in sys.stdin.buffer:
            place = told = 0
            for length in json.loads(line):
                found = look(os.pread(pictures, length, place), decode)
                told += os.pwrite(replies, json.dumps(found).encode() + b"\n", told)
                place += length
            stdout.write(b"done\n")


if __name__ == "__main__":
    main()
