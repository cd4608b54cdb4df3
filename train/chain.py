"""Where a run's first weights came from, checkpoint by checkpoint: what a later stage can say of an earlier one."""

import hashlib
import json
from typing import Any

from train.checkpoint.commits import COMMIT, Commit

Chain = list[dict[str, Any]]
"""The oldest first."""


def chain_after(commit: Commit) -> Chain:
    """The chain of a run whose first weights are a checkpoint's: that of the run that wrote it, and itself."""
    plan = json.dumps(commit.state.get("plan"), sort_keys=True).encode()
    return [
        *commit.state.get("chain", []),
        {
            "run": str(commit.path.parent.parent),
            "checkpoint": commit.path.name,
            "commit": (commit.path / COMMIT).read_text(encoding="ascii").strip(),
            "stage": commit.state.get("stage"),
            "step": commit.step,
            "tokens": commit.state.get("counters", {}).get("tokens"),
            "recipe_sha256": hashlib.sha256(commit.recipe.encode()).hexdigest(),
            "data_sha256": hashlib.sha256(plan).hexdigest(),
            "sources": (commit.state.get("plan") or {}).get("sources"),
        },
    ]
