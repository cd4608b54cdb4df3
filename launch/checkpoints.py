"""`triptych checkpoint list|show|verify|import`: what lies in a run's folder, said in lines of text."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch.repair import Fault, faults
from model.canonical import Box
from model.hf_config import check_sizes
from model.hf_read import open_hf
from train.checkpoint import find_commit, save_commit
from train.commits import attempts, listed_files, open_commit, problems
from train.config import RunConfig
from train.ready import check_run_folder
from train.resolve import to_yaml
from train.tensor_store import TensorReader

log = logging.getLogger(__name__)


def list_lines(run_dir: str | Path) -> list[str]:
    """One line a checkpoint folder, newest first: name, bytes, when it was sealed. Digests are not checked."""
    lines = []
    for attempt in attempts(run_dir):
        if attempt.sealed:
            size = sum(file["size"] for file in listed_files(attempt.path).values())
            said = f"{size / 1e6:.1f} MB  {open_commit(attempt.path).state.get('saved_at', '')}"
        else:
            said = "never finished"
        lines.append(f"{attempt.path.name}  {said}")
    return lines


def show_lines(where: str | Path) -> list[str]:
    """State, then every tensor with shape and dtype, of a run's newest usable checkpoint or of one folder.

    Raises ValueError if there is none.
    """
    commit = find_commit(where)
    reader = TensorReader(commit.path)
    lines = [str(commit.path)]
    lines += [f"{key}: {value}" for key, value in commit.state.items()]
    lines += [
        f"{name}  {list(reader.shape(name))}  {str(reader.dtype(name)).removeprefix('torch.')}"
        for name in reader.names()
    ]
    return lines


def verify_lines(where: str | Path) -> tuple[bool, list[str]]:
    """Read every byte of every checkpoint at `where`, and where digests hold every tensor (launch/repair.py).

    Returns whether all are in order, and lines that name what is not.
    """
    good, lines = True, []
    for attempt in attempts(where):
        wrong = problems(attempt.path)
        found = [] if wrong else faults(open_commit(attempt.path))
        good = good and not wrong and not found
        said = f"every digest holds, {_in_order(found)}"
        lines += [f"{attempt.path.name}  {'; '.join(wrong) or said}", *(f"  {fault.line}" for fault in found)]
    return good and bool(lines), lines or [f"{where} has no checkpoint"]


def _in_order(found: Sequence[Fault]) -> str:
    if not found:
        return "every tensor is in order"
    cure = "`triptych checkpoint repair` mends it" if all(fault.curable for fault in found) else "beyond repair"
    return f"but {len({fault.tensor for fault in found})} tensor(s) are not in order; {cure}"


def import_hf(folder: str | Path, run: RunConfig) -> Path:
    """Turn a Hugging Face folder into a checkpoint of weights alone, for `init.from_run` of later runs.

    The whole model is held in host memory; `init.from_hf` needs no import and reads each rank's part alone.

    Args:
        folder: Qwen2-VL or plain Qwen2, safetensors.
        run: its run_dir, which may hold no checkpoint yet, receives this one as step 0; its model must be the folder's.

    Raises:
        ValueError: checkpoints are there already, other sizes than the recipe's, with both values, or tensors that do
            not fit, named.
    """
    check_run_folder(replace(run, resume=False))  # a later step's checkpoint would stay the newest
    check_sizes(folder, run.model)
    reader = open_hf(folder, run.model)
    if widened := reader.widened():
        log.warning(
            "%s stores the parts of %d fused tensors in several dtypes; each is kept in the wider one, and export "
            "writes it so: %s",
            folder,
            len(widened),
            ", ".join(widened[:3]) + (", ..." if len(widened) > 3 else ""),
        )
    tensors = {name: reader.read(name) for name in reader.names()}
    boxes = {
        name: Box(name=name, global_shape=tuple(tensor.shape), offset=(0,) * tensor.dim(), shape=tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    state = {"stage": "import", "source": Path(folder).name}
    return save_commit(run.run_dir, 0, tensors, boxes, None, state, to_yaml(run), tp_rank=0, keep=1)
