"""Stands in for `launch.answering.beside`: does what the first word of the command says, and is quick to start."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from launch.answering.beside import _end_with_the_trainer


def main() -> None:
    """tell: leave a result. hang: start a child that hangs as well, note both, and hang. die: leave nothing."""
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()
    wanted = json.loads(sys.argv[1])
    out, (what, *_) = Path(wanted["out"]), wanted["evaluate"]["command"]
    if what == "tell":
        seen = {key: value for key, value in os.environ.items() if "RANK" in key or key == "CUDA_VISIBLE_DEVICES"}
        (out / "result.json").write_text(json.dumps({"command": {"score": 0.5}, "seen": seen}))
    if what == "die":
        raise SystemExit(3)
    if what == "hang":
        child = subprocess.Popen(["sleep", "600"])
        (out / "pids.part").write_text(f"{os.getpid()} {child.pid}")
        (out / "pids.part").replace(out / "pids")
        time.sleep(600.0)


if __name__ == "__main__":
    main()
