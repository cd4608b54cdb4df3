"""`python -m tests.prove.planted NAME -u -m MODULE ...`: what `python -u -m MODULE ...` does, with a defect planted.

NAME may be several, joined by `+`.
"""

import runpy
import sys

from tests.prove.plants import PLANTS


def main() -> None:
    """Plant, then run the module as the interpreter would."""
    _, name, *rest = sys.argv
    start = rest.index("-m")
    for one in name.split("+"):
        PLANTS[one].apply()
    sys.argv = [rest[start + 1], *rest[start + 2 :]]
    runpy.run_module(rest[start + 1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
