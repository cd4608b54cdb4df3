"""`python -m tests.prove.NAME [--plant NAME | --plants [--some NAME ...]] [--only TEXT]`: one proof, measured.

Writes runs/proof/NAME.json (with a plant runs/proof/NAME.PLANT.json) and exits non-zero if a row is not ok or missing.
"""

import argparse
import faulthandler
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable

import numpy as np

from tests.prove.case import Case
from tests.prove.context import Context, Worlds
from tests.prove.fault_table import write_fault_table
from tests.prove.plants import PLANTS
from tests.prove.rows_out import Ledger, Row, print_head, print_row

WHOLE_LIMIT_SECONDS = 120 * 60
"""Each case has limits of its own; beside other work the checkpoints' proof takes an hour."""


def prove(cases: dict[str, Case], ledger: Ledger, worlds: Worlds, plant: str | None) -> bool:
    """Run what the ledger lacks; whether every row of every case is ok."""
    context = Context(worlds, plant)
    print_head()
    try:
        for key, case in cases.items():
            if key not in ledger.rows:
                ledger.add(key, _rows(case, context))
            for row in ledger.rows[key]:
                print_row(row)
    finally:
        context.close()
    write_fault_table(ledger.beside("faults.md"), cases, ledger.rows)
    return ledger.finish()


def _rows(case: Case, context: Context) -> list[Row]:
    started = time.monotonic()
    cells = {}
    try:
        cells = {cell.name: cell for cell in case.run(context)}
    except Exception:
        print(traceback.format_exc(limit=-3)[-3000:], file=sys.stderr, flush=True)
    seconds = round((time.monotonic() - started) / len(case.names), 3)
    rows = []
    for name in case.names:
        cell = cells.get(name)
        measured = None if cell is None else np.asarray(cell.measured).item()  # numpy's numbers are not JSON's
        rows.append(
            Row(
                item=case.item,
                case=name,
                measured=measured,
                limit=cell.limit if cell else 0.0,
                unit=cell.unit if cell else "",
                seconds=seconds,
                # Not `not over`: a nan is over every limit.
                ok=cell is not None and measured <= cell.limit,
            )
        )
    return rows


def prove_plants(proof: str, cases: dict[str, Case], names: list[str]) -> bool:
    """Whether the proof fails with each plant, as it must, and by what it measures unless the plant `ends` a case."""
    worlds = Worlds()
    blind = []
    for name in names:
        print(f"\nplanted: {name}", flush=True)
        started = time.monotonic()
        chosen = {key: cases[key] for key in PLANTS[name].cases}
        ledger = Ledger(f"{proof}.{name}")
        prove(chosen, ledger, worlds, name)
        verdict = _of_plant([row for rows in ledger.rows.values() for row in rows], PLANTS[name].ends)
        print(f"{name}: {verdict or 'the proof fails, as it must'} ({time.monotonic() - started:.0f} s)", flush=True)
        blind += [name] if verdict else []
    worlds.close()
    print(f"\n{len(names) - len(blind)} of {len(names)} plants are noticed" + (f"; not: {blind}" if blind else ""))
    return not blind


def _of_plant(rows: list[Row], ends: bool) -> str | None:
    """What is wrong with the rows of a planted proof; None if they show the plant."""
    failed = [row for row in rows if not row.ok]
    if not failed:
        return "the proof PASSES, so it is blind to it"
    missing = [row for row in failed if row.measured is None]
    if ends:
        return None if missing else "no case ENDS, as the plant says"
    # What breaks the harness breaks it for any reason.
    return "a case ENDS without a measurement, which shows nothing" if len(missing) == len(failed) else None


def main(proof: str, make_cases: Callable[[], dict[str, Case]]) -> None:
    """Parse, prove, exit.

    Args:
        proof: its name, as `make prove-NAME` has it.
        make_cases: every case by its key.
    """
    plants = sorted(name for name, plant in PLANTS.items() if plant.proof == proof)
    parser = argparse.ArgumentParser(prog=f"python -m tests.prove.{proof}", description=__doc__)
    parser.add_argument("--plant", choices=plants, help="plant one defect; the proof has to fail")
    parser.add_argument("--plants", action="store_true", help="every plant in turn; fails if one goes unnoticed")
    parser.add_argument("--some", nargs="*", choices=plants, help="with --plants: only these")
    parser.add_argument("--only", default="", help="cases whose key contains this")
    options = parser.parse_args()
    faulthandler.dump_traceback_later(WHOLE_LIMIT_SECONDS, exit=True)
    warnings.filterwarnings("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the processes started here
    started = time.monotonic()
    cases = make_cases()
    if options.plants:
        raise SystemExit(not prove_plants(proof, cases, options.some or plants))
    if options.plant is not None:
        cases = {key: cases[key] for key in PLANTS[options.plant].cases}
    cases = {key: case for key, case in cases.items() if options.only in key}
    ledger = Ledger(proof + (f".{options.plant}" if options.plant else ".part" if options.only else ""))
    if options.plant is None:
        ledger.load()
    worlds = Worlds()
    try:
        ok = prove(cases, ledger, worlds, options.plant)
    finally:
        worlds.close()
    print(f"{'every row is ok' if ok else 'THE PROOF FAILS'} ({time.monotonic() - started:.0f} s)")
    raise SystemExit(not ok)
