"""Which curves a run's page has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from launch.pages.charts import COLOURS, Floats, Marks, draw, latest, short, smooth
from launch.pages.story import Story, number, text


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A picture of numbers, with the names of its lines."""

    title: str
    value: str
    """The latest."""
    svg: Markup
    names: Sequence[tuple[str, int]]
    """(name, colour) of each line, where there are several."""
    note: str = ""


def charts(story: Story) -> Iterator[Chart]:
    """All that the run has values for."""
    seconds = np.where(story.column("step_seconds") > 0, story.column("step_seconds"), np.nan)
    of_sources = story.nested("sources", "loss")
    yield from _chart(story, "Loss", {"loss": story.column("loss")}, band=True)
    if len(of_sources) > 1:
        means = {name: smooth(values) for name, values in of_sources.items()}
        yield from _chart(story, "Loss by source", means, note="means")
    yield from _held_out(story)
    yield from _chart(story, "Gradient norm", {"norm": story.column("grad_norm")}, band=True)
    if len(story.nested("part_norms")) > 1:
        means = {name: smooth(values) for name, values in story.nested("part_norms").items()}
        yield from _chart(story, "Gradient norm by part", means, note="means; before clipping")
    yield from _chart(story, "Learning rate", story.nested("rates"))
    yield from _chart(story, "Tokens a second", {"rate": story.column("tokens_per_second")}, band=True)
    yield from _chart(story, "MFU", {"mfu": story.column("mfu")}, unit="%", band=True)
    waits = {"data wait": story.column("data_seconds") / seconds}
    if np.nansum(story.column("bubble")) > 0:
        waits["pipeline bubble"] = story.column("bubble")
    yield from _chart(story, "Waiting", waits, unit="%", note="of a step; of its forward and backward")
    yield from _chart(story, "Seconds a step", {"seconds": seconds}, band=True)
    spreads = {
        "work of replicas": story.column("load_spread"),
        "patches of replicas": story.column("visual_load_spread"),
        "patches of rows": story.column("microbatch_visual_spread"),
    }
    yield from _chart(story, "Uneven load", spreads, unit="%", note="the busiest over the mean")
    yield from _chart(story, "Drift of copies", {"drift": story.column("replica_drift")})


def _chart(
    story: Story, title: str, series: Mapping[str, Floats], *, unit: str = "", band: bool = False, note: str = ""
) -> Iterator[Chart]:
    """Nothing where no step has a value."""
    series = {name: values for name, values in series.items() if np.isfinite(values).any()}
    if not series:
        return
    first = next(iter(series.values()))
    value = latest(first) if band else float(first[np.isfinite(first)][-1])
    marks = Marks(
        starts=[number(start.get("step")) for start in story.starts[1:]],
        saves=[number(save.get("step")) for save in story.saves if "save_bytes" in save and save.get("fault") is None],
        skipped=story.steps[story.column("skipped") > 0].tolist(),
    )
    names = [(name, place % COLOURS) for place, name in enumerate(series)] if len(series) > 1 else []
    svg = draw(story.steps, series, marks, unit=unit, band=band, zero=title != "Loss")
    yield Chart(title=title, value=short(value, unit) if len(series) == 1 else "", svg=svg, names=names, note=note)


def _held_out(story: Story) -> Iterator[Chart]:
    steps = sorted({at for each in story.evaluations if (at := number(each.get("step"))) == at})
    losses: dict[str, Floats] = {}
    for each in story.evaluations:
        told = each.get("losses")
        for name, value in list(told.items())[:COLOURS] if isinstance(told, dict) else ():
            column = losses.setdefault(text(name, 100), np.full(len(steps), np.nan))
            if number(each.get("step")) in steps:
                column[steps.index(number(each.get("step")))] = number(value)
    if any(np.isfinite(column).any() for column in losses.values()):
        names = [(name, place % COLOURS) for place, name in enumerate(losses)]
        svg = draw(np.array(steps), losses, Marks(), zero=False)
        yield Chart(title="Held-out loss", value="", svg=svg, names=names)
