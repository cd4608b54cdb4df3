"""`python -m train --config-name RECIPE [key=value ...]`, started by launch/torchrun.sh on every rank."""

import os
import sys
import traceback

import hydra
from omegaconf import DictConfig

from data.errors import ShardFault
from parallel.world import distributed, world_size_from_launcher
from train.agreement import CheckpointError
from train.resolve import loosen, to_run_config
from train.step import NonFiniteStep
from train.trainer import Trainer


@hydra.main(version_base=None, config_path="../recipes")
def main(raw: DictConfig) -> None:
    """Resolve the recipe, join the world, train. What the user can mend ends with one message, not a traceback."""
    try:
        run = to_run_config(raw, world_size_from_launcher())
        with distributed(run.parallel, run.seed) as groups:
            Trainer(run, groups).fit()
    except (ValueError, CheckpointError, ShardFault, NonFiniteStep) as fault:
        place = traceback.extract_tb(fault.__traceback__)[-1]
        print(f"[rank {os.environ.get('RANK', '0')}] {fault} ({place.filename}:{place.lineno})", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    sys.argv[1:] = loosen(sys.argv[1:])
    main()
