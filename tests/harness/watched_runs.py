"""What is wrong with what a run tells of itself: its page, wandb and TensorBoard beside metrics.jsonl, its line."""

import contextlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

from launch.pages.look import visible
from launch.pages.report import write_run_report
from tests.harness.browser import find_browser, is_blank
from tests.harness.html_page import HOSTILE
from tests.harness.report_page import read_report
from tests.harness.sunk import read_tensorboard, read_wandb
from tests.harness.told_runs import write_run
from tests.train.test_metrics import REPORT, lines, tiny_run
from train.metrics import Metrics
from train.sinks import scalars
from train.state import TrainState


def alive_on_page(folder: Path) -> int:
    """Tags, attributes, addresses and shapes that nothing of ours writes, on the page of a run whose every text is
    hostile, and hostile texts that are not on it."""
    evil = "".join(HOSTILE)
    page = read_report(
        write_run_report(write_run(folder, 40, sources=(f"a{evil}", "b"), words=evil)).read_text("utf-8")
    )
    return len(page.foreign) + sum(visible(text) not in page.text for text in HOSTILE)


def unlike_in_browser(folder: Path) -> int:
    """What a browser finds on that page otherwise than written; 1 for no browser, or for a page that it shows blank."""
    browser = find_browser(folder.parent)
    if browser is None:
        return 1
    evil = "".join(HOSTILE)
    out = write_run_report(write_run(folder, 40, sources=(f"a{evil}", "b"), words=evil))
    seen, written = read_report(browser.dom(out)), read_report(out.read_text("utf-8"))
    texts = [re.sub(r"\s+", "", page.text) for page in (seen, written)]
    blank = is_blank(browser.screen(out))
    return len(seen.foreign) + (texts[0] != texts[1]) + (seen.charts != written.charts) + blank


def lost_on_the_way(folder: Path, sink: str) -> int:
    """Numbers of metrics.jsonl that are missing or others in the files of wandb or TensorBoard."""
    run = tiny_run(folder)
    asked = {"wandb": "offline"} if sink == "wandb" else {"tensorboard": True}
    metrics = Metrics(replace(run, log=replace(run.log, **asked)), 1e12, from_step=0, from_progress=0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        for step in (1, 2, 3):
            metrics.record(TrainState(step=step, tokens=400 * step), REPORT, progress=0.1 * step)
        metrics.close()
    if sink == "wandb":
        history, _ = read_wandb(folder / "wandb")
        found = {row["step"]: row for row in history}
    else:
        numbers, _, _ = read_tensorboard(folder / "tensorboard")
        found = {step: {name: at.get(step) for name, at in numbers.items()} for step in (1, 2, 3)}
    lost = 0
    for line in lines(folder):
        for name, value in scalars(line).items():
            other = found.get(line["step"], {}).get(name)
            lost += other is None or abs(other - value) > 1e-6 * abs(value)
    return lost


def missed_faults(folder: Path) -> list[str]:
    """Things that are wrong with a run and that its page does not call so."""
    wrong = {
        "Loss": {"loss": 3.0},
        "Gradients": {"grad_norm": 50.0},
        "Speed": {"tokens_per_second": 100.0},
        "Data wait": {"data_seconds": 0.5},
        "Samples": {"bad_samples": 9000},
    }
    missed = []
    for what, values in wrong.items():
        run = write_run(folder / what.replace(" ", "_"))
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for row in rows[-60:]:
            row |= values
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        page = write_run_report(run).read_text("utf-8")
        state = re.search(rf'<i class="(\w+)">[^<]*</i>{what}</dt>', page)
        if state is None or state[1] == "good":
            missed.append(what)
    return missed
