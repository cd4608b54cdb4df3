"""A run's story as tables and charts: what report.html.jinja lays out."""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launch.pages.charts import Floats, latest, short
from launch.pages.health import Finding, State, findings, worst
from launch.pages.run_charts import Chart, charts
from launch.pages.story import Story, number, text
from train.console import duration

MOST_ROWS = 60  # of a table; what is beyond is counted
MOST_ANSWERS = 3  # columns of the sample table: the first evaluation and the latest
MOST_PICTURE_BYTES = 6_000_000  # on one page; browsers open more, but slowly
_PICTURE = re.compile(r"[A-Za-z0-9+/]+={0,2}")
Table = list[list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was answered to a question at one time."""

    said: str
    right: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A row of the sample table."""

    pictures: Sequence[Mapping[str, str]]
    """With `url` and `what`."""
    question: str
    expected: str
    answers: Sequence[Answer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """The sample table."""

    states: Sequence[str]
    """When the answers were given."""
    rows: Mapping[str, Sequence[Example]]
    """By task or source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """All of one run."""

    name: str
    facts: Sequence[str]
    state: State
    findings: Sequence[Finding]
    tiles: Sequence[tuple[str, str]]
    charts: Sequence[Chart]
    mixture: Table
    quarantine: Table
    records: Table
    checkpoints: Table
    starts: Table
    skipped: Table
    examples: Examples | None
    recipe: str
    notes: Sequence[str] = field(default=())


def view(story: Story, name: str) -> RunView:
    """What a page shows of the run."""
    found = findings(story)
    reasons = Counter((text(r.get("source"), 100), text(r.get("reason"), 160)) for r in story.quarantine)
    notes = [f"{story.broken} lines or files of the folder could not be read"] if story.broken else []
    return RunView(
        name=name,
        facts=_facts(story),
        state=worst(found),
        findings=found,
        tiles=_tiles(story),
        charts=list(charts(story)),
        mixture=_mixture(story),
        quarantine=_cut([[source, f"{count}", why] for (source, why), count in reasons.most_common()]),
        records=_cut(
            [[text(r.get(key), 200) for key in ("source", "key", "where", "reason")] for r in story.quarantine]
        ),
        checkpoints=_checkpoints(story),
        starts=_starts(story),
        skipped=_cut([[text(s.get("step"), 20), text(s.get("reason"), 300)] for s in story.skipped]),
        examples=_examples(story.evaluations),
        recipe=story.recipe,
        notes=notes,
    )


def _facts(story: Story) -> list[str]:
    last = story.starts[-1] if story.starts else {}
    world = f"{text(last.get('world_size'), 20)} x {text(last.get('device'), 80)}" if "world_size" in last else ""
    when = [at for at in story.column("time")[[0, -1]] if np.isfinite(at)] if len(story.steps) else []
    span = " to ".join(dict.fromkeys(_utc(at) for at in when))
    return [fact for fact in (story.stage, text(last.get("layout"), 40), world, span) if fact]


def _tiles(story: Story) -> list[tuple[str, str]]:
    tokens = story.column("tokens")
    tiles = [
        ("steps", short(float(story.steps[-1])) if len(story.steps) else "0"),
        ("loss", short(latest(story.column("loss")))),
        ("tokens", short(float(np.nanmax(tokens))) if np.isfinite(tokens).any() else "-"),
        ("tokens/s", short(_middle(story.column("tokens_per_second")))),
    ]
    if np.isfinite(story.column("mfu")).any():
        tiles.append(("MFU", short(_middle(story.column("mfu")), "%")))
    tiles.append(("time in steps", duration(story.seconds)))
    return tiles


def _mixture(story: Story) -> Table:
    """Source, samples, tokens, share of tokens, share of targets, latest loss, samples set aside."""
    tokens, targets = (max(1, sum(of[key] for of in story.sources.values())) for key in ("tokens", "targets"))
    bad = Counter(text(record.get("source"), 200) for record in story.quarantine)
    rows = []
    for name, of in sorted(story.sources.items(), key=lambda pair: -pair[1]["tokens"]):
        rows.append(
            [
                name,
                short(of["samples"]),
                short(of["tokens"]),
                f"{100 * of['tokens'] / tokens:.1f} %",
                f"{100 * of['targets'] / targets:.1f} %",
                short(latest(story.column(f"sources/{name}/loss"))),
                f"{bad[name]}",
            ]
        )
    return _cut(rows)


def _checkpoints(story: Story) -> Table:
    """Step, folder, what became of it, size, seconds to write, seconds that training was held up; newest first."""
    rows = []
    for save in reversed(story.saves):
        is_upload = "upload_bytes" in save
        before = "upload" if is_upload else "save"
        fault = save.get("fault")
        rows.append(
            [
                text(save.get("step"), 20),
                text(save.get("checkpoint"), 80),
                ("uploaded" if is_upload else "saved") if fault is None else f"failed: {text(fault, 300)}",
                f"{short(number(save.get(f'{before}_bytes')))}B",
                f"{short(number(save.get(f'{before}_seconds')))} s",
                "" if is_upload else f"{short(number(save.get('save_stall_seconds')))} s",
            ]
        )
    return _cut(rows)


def _starts(story: Story) -> Table:
    """When, from which step, where, on what, layout, versions."""
    rows = []
    for start in story.starts:
        versions = start.get("versions")
        named = [f"{text(k, 40)} {text(v, 40)}" for k, v in versions.items()] if isinstance(versions, dict) else []
        rows.append(
            [
                _utc(number(start.get("time"))),
                text(start.get("step"), 20),
                text(start.get("host"), 80),
                f"{text(start.get('world_size'), 20)} x {text(start.get('device'), 80)}",
                text(start.get("layout"), 40),
                ", ".join(named[:20]),
            ]
        )
    return _cut(rows)


def _examples(evaluations: Sequence[Mapping[str, Any]]) -> Examples | None:
    """Each sample of the latest evaluation, with what was answered at the first and at the latest ones."""
    told = [each for each in evaluations if isinstance(each.get("samples"), list) and each["samples"]]
    told = told if len(told) <= MOST_ANSWERS else [told[0], *told[1 - MOST_ANSWERS :]]
    if not told:
        return None
    given = [{_key(sample): sample for sample in each["samples"] if isinstance(sample, dict)} for each in told]
    rows: dict[str, list[Example]] = {}
    left = MOST_PICTURE_BYTES
    for key, sample in list(given[-1].items())[:MOST_ROWS]:
        pictures = []
        listed = sample.get("pictures")
        for code in listed if isinstance(listed, list) else ():
            if isinstance(code, str) and len(code) <= left and _PICTURE.fullmatch(code):
                left -= len(code)
                pictures.append({"url": f"data:image/png;base64,{code}", "what": "picture of the sample"})
        answers = [_answer(each.get(key)) for each in given]
        asked, expected = text(sample.get("prompt")), text(sample.get("expected"))
        row = Example(pictures=pictures, question=asked, expected=expected, answers=answers)
        rows.setdefault(text(sample.get("source"), 100), []).append(row)
    return Examples(states=[f"step {text(each.get('step'), 20)}" for each in told], rows=rows)


def _key(sample: Mapping[str, Any]) -> tuple[str, str]:
    return text(sample.get("source")), text(sample.get("sample"))


def _answer(sample: Mapping[str, Any] | None) -> Answer:
    if sample is None:
        return Answer(said="", right=None)
    right = sample.get("right")
    return Answer(said=text(sample.get("answer")), right=right if isinstance(right, bool) else None)


def _cut(rows: Table) -> Table:
    if len(rows) <= MOST_ROWS:
        return rows
    return [*rows[:MOST_ROWS], [f"and {len(rows) - MOST_ROWS} more", *[""] * (len(rows[0]) - 1)]]


def _middle(values: Floats) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


def _utc(at: float) -> str:
    if not 0 < at < 1e11:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
