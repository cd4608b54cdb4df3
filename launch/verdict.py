"""`python -m launch.verdict [--clear] --config-name RECIPE [--config-path DIR] [key=value ...]`

Says how the last start of a run ended, for launch scripts: again, done, failed, or none. `--clear` forgets it, before a
start that may not come as far as to do so itself.
"""

import sys
from collections.abc import Sequence

from launch.torchrun import recipe_of
from train.ending import clear_ending, read_ending
from train.lock import LEASE_SECONDS, check_lock


def main(arguments: Sequence[str]) -> None:
    """Exit 2 with the reason if there is no such recipe, or nothing to forget while a run trains."""
    words = [word for word in arguments if word != "--clear"]
    try:
        run = recipe_of(words)
        if len(words) < len(arguments):
            check_lock(run.run_dir, LEASE_SECONDS)  # the verdict of who trains there is not ours to forget
            clear_ending(run.run_dir)
            return
    except (ValueError, OSError) as fault:
        print(fault, file=sys.stderr)
        raise SystemExit(2) from None
    ending = read_ending(run.run_dir)
    print(ending.verdict if ending is not None else "none")


if __name__ == "__main__":
    main(sys.argv[1:])
