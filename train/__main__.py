"""`python -m train --config-name RECIPE [key=value ...]`, started by launch/torchrun.sh on every rank."""

import os
import sys
import traceback
from functools import partial

import hydra
from omegaconf import DictConfig

from parallel.verdict import MENDABLE_CODE
from parallel.watch import Watch
from parallel.world import distributed, world_size_from_launcher
from train.ending import conclude
from train.faults import MENDABLE
from train.preflight import check_together
from train.resolve import loosen, to_run_config
from train.trainer import Trainer


@hydra.main(version_base=None, config_path="../recipes")
def main(raw: DictConfig) -> None:
    """Resolve the recipe, join the world, train. What the user can mend ends with one message, not a traceback."""
    try:
        run = to_run_config(raw, world_size_from_launcher())
    except ValueError as fault:
        place = traceback.extract_tb(fault.__traceback__)[-1]
        print(f"[rank {os.environ.get('RANK', '0')}] {fault} ({place.filename}:{place.lineno})", file=sys.stderr)
        raise SystemExit(MENDABLE_CODE) from None
    with (
        Watch(run.parallel, run.run_dir, MENDABLE, partial(conclude, run.run_dir)) as watch,
        distributed(run.parallel, run.seed) as groups,
        watch.telling(),
    ):
        check_together(run, groups)
        Trainer(run, groups, watch).fit()


if __name__ == "__main__":
    sys.argv[1:] = loosen(sys.argv[1:])
    main()
