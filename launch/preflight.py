"""`python -m launch.preflight WORLD_SIZE --config-name RECIPE [--config-path DIR] [key=value ...] [--files] [--print]`

Says in one message, in one process, what would stop a run: torchrun.sh calls it before it starts any other. Without
`--files` it looks at the recipe alone, so that a recipe can be tried where its data is not.
"""

import argparse
import sys
from pathlib import Path

from launch.checkout import CheckoutError, check_checkout
from train.config import RunConfig
from train.resolve import RecipeError, compose, to_yaml


def main(arguments: list[str] | None = None) -> None:
    """Exit 0 if the run can start, 2 with the reasons if not."""
    parser = argparse.ArgumentParser(prog="python -m launch.preflight", description=__doc__)
    parser.add_argument("world_size", type=int, help="processes of the whole job")
    parser.add_argument("--config-name", required=True, help="recipe, without .yaml")
    parser.add_argument("--config-path", type=Path, help="folder of the recipe, instead of recipes/")
    parser.add_argument(
        "--files", action="store_true", help="look at the tokenizer, indexes and runs that it names too"
    )
    parser.add_argument("--print", action="store_true", help="show the resolved recipe")
    options, overrides = parser.parse_known_args(arguments)
    try:
        check_checkout()
        run = compose(options.config_name, overrides, folder=options.config_path, world_size=options.world_size)
        if options.files and (faults := _file_faults(run)):
            raise RecipeError("the run cannot start:" + "".join(f"\n  - {fault}" for fault in faults))
    except (CheckoutError, RecipeError) as fault:
        print(fault, file=sys.stderr)
        raise SystemExit(2) from None
    if options.print:
        print(to_yaml(run), end="")


def _file_faults(run: RunConfig) -> list[str]:
    from train.ending import clear_ending
    from train.lock import LEASE_SECONDS, check_lock
    from train.ready import file_faults  # takes a second to import, which a faulty recipe need not wait for

    try:
        check_lock(run.run_dir, LEASE_SECONDS)
    except (ValueError, OSError) as fault:
        return [str(fault)]  # and the verdict is left to who trains there
    clear_ending(run.run_dir)  # a start that is refused must not leave the verdict of the one before
    return file_faults(run)


if __name__ == "__main__":
    main()
