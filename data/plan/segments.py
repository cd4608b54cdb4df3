"""Stretches of a run that were planned alike. A commit holds all of them, so that any past step can be planned again.

A change of mixture, sources, rows of a step, budgets or window ends a segment. The next one begins with what the
segments before it left of each source (used.py), at the step after the checkpoint that the run goes on from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import MismatchError
from data.plan.plan import Cursor, Plan, StepPlan
from data.plan.used import Used, used_from_dict, used_to_dict

_THE_ORDER = ("version", "seed", "run_length")
"""Of a plan's identity, what places of a source's endless sequence stand for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One stretch of a run."""

    first_step: int
    """The first step that it feeds, counted from 1."""
    data: Mapping[str, Any]
    """`data` of the recipe that it was planned by, as JSON has it."""
    plan: Mapping[str, Any]
    """`Plan.identity`, as JSON has it."""
    used: Used
    """By the segments before it."""
    cursor: Cursor
    """At its end; in the last segment of a commit, after the commit's step."""

    def to_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "first_step": self.first_step,
            "data": self.data,
            "plan": self.plan,
            "used": used_to_dict(self.used),
            "cursor": self.cursor.to_dict(),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Segment":
        """Inverse of `to_dict`."""
        return cls(
            first_step=int(saved["first_step"]),
            data=saved["data"],
            plan=saved["plan"],
            used=used_from_dict(saved["used"]),
            cursor=Cursor.from_dict(saved["cursor"]),
        )


def segment_of(segments: Sequence[Segment], step: int) -> Segment:
    """The segment that feeds a step; steps count from 1. Raises ValueError if none does.

    A segment that was left before it fed a step begins where the next one does.
    """
    found = [segment for segment in segments if segment.first_step <= step]
    if step < 1 or not found:
        first = segments[0].first_step if segments else 1
        raise ValueError(f"no plan is known of step {step}; the first one that is known is step {first}")
    return found[-1]


def step_of(segments: Sequence[Segment], step: int, plan_again: Callable[[Segment], Plan]) -> StepPlan:
    """The rows of any step of a run, the past ones as they were fed. Source ids are places in that segment's sources.

    Packs the windows of its segment that come before it: some seconds for ten million samples.

    Args:
        segments: all of a run's, in their order.
        plan_again: opens the sources of a segment and plans it; what it gives is held to the segment's identity.
    """
    segment = segment_of(segments, step)
    plan = plan_again(segment)
    check_same_plan(segment.plan, plan.identity)
    return plan.step(plan.cursor_after(step - segment.first_step))


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Keys in which two `Plan.identity` differ."""
    return [key for key in sorted({*saved, *current}) if saved.get(key) != current.get(key)]


def check_same_plan(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse another order of samples: compares two `Plan.identity`, raises MismatchError."""
    check_may_follow([saved], current, allowed=())
    if saved != current:
        raise MismatchError(
            f"what earlier segments of the plan have used has digest {current.get('used')}, was {saved.get('used')}; "
            "take another checkpoint, this one's state.json does not fit itself"
        )


def check_may_follow(saved: Sequence[Mapping[str, Any]], current: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Refuse a new segment that was not asked for, or that would lose count of a source. Raises MismatchError.

    Args:
        saved: identities of all segments so far, as JSON has them.
        current: of the plan that is to go on.
        allowed: keys of an identity that may differ from those of the last segment.
    """
    differ = [key for key in differences(saved[-1], current) if key != "used"]
    other = sorted({f"data.sources.{name}" for name in _other_sources(saved, current)})
    wrong = [key for key in differ if key not in set(allowed) or key in _THE_ORDER]
    if not wrong and not other:
        return
    told = "; ".join(f"{key} was {saved[-1].get(key)!r} and is {current.get(key)!r}" for key in wrong)
    cures = []
    if other:
        cures.append(
            f"{', '.join(other)}: the index is not the one that the run has used, so its samples cannot be told from "
            "those. Bring back the shards and tokenizer that it was made of, or give the source another name, under "
            "which it begins anew"
        )
    if any(key in _THE_ORDER for key in wrong):
        cures.append(
            f"{', '.join(key for key in wrong if key in _THE_ORDER)}: this is the order of samples itself, in which a "
            "run counts those that it has used; bring it back, or start a new run with init.from_run"
        )
    if asked := [key for key in wrong if key not in _THE_ORDER and not (key == "sources" and other)]:
        flags = " ".join(f"--allow data.{key}" for key in asked)
        cures.append(
            f"{', '.join(asked)}: bring it back, or begin a new segment of the plan: `triptych resume RUN ... {flags}`"
        )
    raise MismatchError("; ".join(("the data is not that of the checkpoint", *filter(None, [told]), *cures)))


def _other_sources(saved: Sequence[Mapping[str, Any]], current: Mapping[str, Any]) -> set[str]:
    """Sources that some segment has had under the same name with another index."""
    digests = {name: digest for name, _, digest in current.get("sources", [])}
    return {
        name
        for identity in saved
        for name, _, digest in identity.get("sources", [])
        if digests.get(name, digest) != digest
    }
