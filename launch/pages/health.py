"""Whether a run is healthy, in sentences: what a practitioner looks for first, with the numbers and where to look next.

All limits are ours. They are wide: a line that is not green is worth a look, and not always a fault.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from launch.pages.charts import short
from launch.pages.story import Floats, Story, number, text

State = Literal["good", "look", "bad"]
WAIT = (0.05, 0.20)
"""Shares of the time waited for data, above which one should look, and above which it is bad."""
BUBBLE = (0.20, 0.35)
BAD_SAMPLES = (0.001, 0.01)
SPREAD = (0.25, 0.60)
LOSS_RISE = (0.10, 0.50)
"""Above the lowest tenth of the run, as a share of it."""
SLOWER = (0.20, 0.50)
"""Than the run's own median."""
ODD_STEPS = (0.002, 0.02)
"""Left out, or with a norm SPIKE times as large as the median."""
SPIKE = 10.0
SILENCE = 3600.0
"""Seconds without a step after which a run that left no verdict is taken for lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line."""

    state: State
    what: str
    said: str


def findings(story: Story) -> list[Finding]:
    """Every look, in the order in which one takes them."""
    return [*_ending(story), *_loss(story), *_gradients(story), *_speed(story), *_data(story), *_saves(story)]


def worst(found: list[Finding]) -> State:
    """Of all lines."""
    states = {finding.state for finding in found}
    return "bad" if "bad" in states else "look" if "look" in states else "good"


def _ending(story: Story) -> Iterator[Finding]:
    if story.ending is None:
        quiet = time.time() - _last(story.column("time"))
        if quiet > SILENCE:
            said = f"no verdict, and no step for {short(quiet / 3600)} hours: it was killed, or its host was lost"
            yield Finding(state="look", what="End", said=said)
        else:
            yield Finding(state="good", what="End", said="no verdict yet: the run trains")
        return
    state: State = "bad" if story.ending.verdict == "failed" else "good"
    words = {"done": "done", "again": "ended in order, to be started again", "failed": "failed"}
    if story.ending.stuck:
        words["again"] = "stuck, to be started again"
    said = f"{words.get(story.ending.verdict, 'unknown')} at step {story.ending.step}: {text(story.ending.reason, 400)}"
    yield Finding(state=state, what="End", said=said)


def _loss(story: Story) -> Iterator[Finding]:
    tenths = _tenths(story.column("loss"))
    if not tenths:
        yield Finding(state="look", what="Loss", said="no step has one")
        return
    lowest = min(tenths)
    rise = tenths[-1] / lowest - 1 if lowest > 0 else 0.0
    said = f"{short(tenths[-1])} over the last tenth of the steps, {short(tenths[0])} over the first"
    if rise > LOSS_RISE[0]:
        said += f"; it has been {short(rise, '%')} lower"
    yield Finding(state=_judged(rise, LOSS_RISE), what="Loss", said=said)


def _gradients(story: Story) -> Iterator[Finding]:
    left_out = int(np.nansum(story.column("skipped")))
    norms = story.column("grad_norm")
    usual = float(np.nanmedian(norms)) if np.isfinite(norms).any() else 0.0
    spikes = int((norms[np.isfinite(norms)] > SPIKE * usual).sum()) if usual > 0 else 0
    said = f"norm {short(usual)} in the median"
    said += f", {spikes} steps above {SPIKE:g} times that" if spikes else ""
    said += f", left out {left_out} of {len(story.steps)} steps" if left_out else ""
    share = (left_out + spikes) / max(1, len(story.steps))
    yield Finding(state=_judged(share, ODD_STEPS), what="Gradients", said=said)


def _speed(story: Story) -> Iterator[Finding]:
    rates = story.column("tokens_per_second")
    tenths = _tenths(rates)
    if tenths:
        usual = float(np.nanmedian(rates))
        mfu = story.column("mfu")
        said = f"{short(tenths[-1])} tokens/s over the last tenth, {short(usual)} in the median"
        said += f", MFU {short(float(np.nanmedian(mfu)), '%')}" if np.isfinite(mfu).any() else ""
        yield Finding(state=_judged(1 - tenths[-1] / usual if usual > 0 else 0.0, SLOWER), what="Speed", said=said)
    if story.seconds > 0:
        wait = float(np.nansum(story.column("data_seconds"))) / story.seconds
        said = f"{short(wait, '%')} of the time waited for data"
        yield Finding(state=_judged(wait, WAIT), what="Data wait", said=said)
    bubble = story.column("bubble")
    if np.nansum(bubble) > 0:
        share = float(np.nanmean(bubble))
        said = f"{short(share, '%')} of forward and backward waited for other pipeline stages"
        yield Finding(state=_judged(share, BUBBLE), what="Bubble", said=said)
    spreads = story.column("visual_load_spread")
    if np.nansum(spreads) > 0:  # one replica has nothing to share
        share = float(np.nanmean(spreads))
        said = f"the busiest replica has {short(share, '%')} more patches than the mean"
        yield Finding(state=_judged(share, SPREAD), what="Visual load", said=said)


def _data(story: Story) -> Iterator[Finding]:
    samples, bad = (_last(story.column(name)) for name in ("samples", "bad_samples"))
    if samples > 0:
        said = f"{short(bad)} of {short(samples)} samples could not be used"
        yield Finding(state=_judged(bad / samples, BAD_SAMPLES), what="Samples", said=said)


def _saves(story: Story) -> Iterator[Finding]:
    saves = [save for save in story.saves if "save_bytes" in save]
    faults = [save for save in story.saves if save.get("fault") is not None]
    if not saves:
        yield Finding(state="look", what="Checkpoints", said="none yet")
        return
    stall = sum(max(0.0, value) for save in saves if (value := number(save.get("save_stall_seconds"))) == value)
    share = stall / story.seconds if story.seconds else 0.0
    said = f"{len(saves)} saved, which held training up for {short(share, '%')} of the time"
    state: State = "good"
    if faults:
        said += f"; {len(faults)} saves or uploads failed, the last at step {text(faults[-1].get('step'), 20)}: "
        said += text(faults[-1]["fault"], 200)
        state = "bad" if faults[-1] is story.saves[-1] else "look"
    yield Finding(state=state, what="Checkpoints", said=said)


def _judged(value: float, limits: tuple[float, float]) -> State:
    return "bad" if value > limits[1] else "look" if value > limits[0] else "good"


def _tenths(values: Floats) -> list[float]:
    """Means of the finite values, a tenth of them after the other."""
    finite = values[np.isfinite(values)]
    return (
        [float(part.mean()) for part in np.array_split(finite, min(10, len(finite))) if len(part)]
        if len(finite)
        else []
    )


def _last(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else 0.0
