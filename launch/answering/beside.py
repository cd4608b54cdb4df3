"""`python -m launch.answering.beside WANTED`: what train/beside.py starts after an evaluated step.

WANTED is JSON: {"commit", "out", "step", "evaluate"}. It leaves out/result.json: {"fault", "samples", "command"}. Stdin
is a pipe that the trainer holds open: when that has gone, however it ended, this process ends with all that it started.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.store.config import KEY_VARIABLES
from train.beside import RESULT
from train.config import EvaluateConfig
from train.lines import plain
from train.resolve import evaluate_from_plain

_NICER = 10
"""Training's own processes come first on the cores they share."""
_MOST_BYTES = 1 << 20
"""Of a command's results."""
_SECRETS = (*KEY_VARIABLES, "WANDB_API_KEY")
"""Variables that a user's command does not get."""


def main(text: str) -> None:
    """Do all that is wanted; what fails is in the result, and so is what went well before it."""
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()
    os.nice(_NICER)
    wanted = json.loads(text)
    out, evaluate = Path(wanted["out"]), evaluate_from_plain(wanted["evaluate"])
    told: dict[str, Any] = {"fault": None}
    try:
        if evaluate.answers:
            from launch.answering.answers import answers_of  # brings transformers along

            told["samples"] = [shown.to_dict() for shown in answers_of(Path(wanted["commit"]), evaluate)]
        if evaluate.command:
            told["command"] = _command(Path(wanted["commit"]), out, int(wanted["step"]), evaluate)
    except Exception as error:
        told["fault"] = f"{type(error).__name__}: {error}"
    partial = out / f"{RESULT}.part"
    partial.write_text(json.dumps(plain(told), allow_nan=False) + "\n")
    partial.replace(out / RESULT)


def _command(commit: Path, out: Path, step: int, evaluate: EvaluateConfig) -> dict[str, Any]:
    """Export and run the user's command; what it wrote to {out}. Raises ValueError, OSError."""
    from launch.checkpoints.export import export

    folder, results = out / "export", out / "command.json"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier start
    results.unlink(missing_ok=True)
    try:
        export(commit, folder)
        words = {"{export}": str(folder), "{out}": str(results), "{step}": str(step)}
        arguments = [_filled(argument, words) for argument in evaluate.command]
        # What it prints is kept and shown around, and a program in trouble prints all it has.
        environment = {key: value for key, value in os.environ.items() if key not in _SECRETS}
        ended = subprocess.run(arguments, stdin=subprocess.DEVNULL, env=environment, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if ended.returncode != 0:
        raise ValueError(f"the command left with {ended.returncode}; {out / 'log.txt'} has what it said")
    if not results.exists():
        return {}
    if results.stat().st_size > _MOST_BYTES:
        raise ValueError(
            f"{results} has {results.stat().st_size} bytes; a JSON object of at most {_MOST_BYTES} is read"
        )
    told = json.loads(results.read_text())
    if not isinstance(told, dict):
        raise ValueError(f"{results} holds no JSON object")
    return dict(plain(told))


def _filled(argument: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        argument = argument.replace(word, value)
    return argument


def _end_with_the_trainer() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)  # a session of its own: train/beside.py


if __name__ == "__main__":
    main(sys.argv[1])
