"""Token files (item 8)."""

from tests.harness.text_files import DOCUMENTS, text_faults
from tests.prove.case import Case, Cell
from tests.prove.context import Context

ROWS = {
    "ours": "token files: documents that megatron-core's IndexedDataset reads otherwise than they were encoded",
    "theirs": "token files: documents of megatron-core's IndexedDatasetBuilder that are read otherwise",
    "packed": "token files: documents in packed rows that are not as each alone",
    "unnoticed": "token files: changed ones of the same size, not named at start or by --check",
}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {"text files": Case(item=8, names=tuple(ROWS.values()), run=_run)}


def _run(context: Context) -> list[Cell]:
    folder = context.scratch / f"text {context.plant}"
    folder.mkdir()
    (found,) = context.run(1, text_faults, folder=folder)
    unit = f"of {DOCUMENTS} documents"
    return [
        Cell(name=name, measured=found[key], limit=0, unit="changes" if key == "unnoticed" else unit)
        for key, name in ROWS.items()
    ]
