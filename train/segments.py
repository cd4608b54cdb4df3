"""The data of a run, from its first step on: the plan that goes on, and the segments of it that are in every commit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from data.config import DataConfig
from data.errors import MismatchError
from data.loading.rows import open_indexes
from data.plan.plan import Cursor, Plan, StepPlan, plan_identity
from data.plan.segments import Segment, check_may_follow, differences, step_of
from data.plan.used import used_from_dict, used_to_dict
from data.types import SampleIndex
from train.resolve import data_config


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """Where the data of a run comes from, and where it goes on."""

    plan: Plan
    """Of the last segment."""
    cursor: Cursor
    segments: tuple[Segment, ...]

    def told(self, cursor: Cursor) -> dict[str, Any]:
        """For state.json of a commit whose next row is at `cursor`."""
        last = replace(self.segments[-1], cursor=cursor)
        return {
            "cursor": cursor.to_dict(),
            "plan": self.plan.identity,
            "segments": [segment.to_dict() for segment in (*self.segments[:-1], last)],
            "used": used_to_dict(self.plan.used_at(cursor)),
        }


def course(
    config: DataConfig, indexes: Sequence[SampleIndex], saved: Mapping[str, Any] | None, allowed: Sequence[str] = ()
) -> Course:
    """The plan of a new run, or of one that goes on from a commit: its last segment, or a new one.

    Args:
        saved: the commit's state.json; None for a new run.
        allowed: what of `data` may be other than it was (RunConfig.new_segment).

    Raises MismatchError if the data is another and that was not asked for, or cannot be followed; BudgetError.
    """
    if saved is None:
        return _begin((), Plan(config, indexes), 1)
    segments = saved_segments(saved, config)
    last = segments[-1]
    if not differences(last.plan, plan_identity(config, indexes, last.used)):
        plan = Plan(config, indexes, last.used)
        return Course(plan=plan, cursor=Cursor.from_dict(saved["cursor"]), segments=segments)
    current = plan_identity(config, indexes, {})
    check_may_follow([segment.plan for segment in segments], current, allowed)
    if "used" not in saved:
        raise MismatchError(
            f"the checkpoint of step {saved['step']} was written before plans had segments, and does not say which "
            "samples its window has left; go on without the change, and change after the next checkpoint"
        )
    return _begin(segments, Plan(config, indexes, used_from_dict(saved["used"])), int(saved["step"]) + 1)


def _begin(before: tuple[Segment, ...], plan: Plan, first_step: int) -> Course:
    segment = Segment(
        first_step=first_step, data=_plain(plan.config), plan=plan.identity, used=plan.used, cursor=Cursor()
    )
    return Course(plan=plan, cursor=Cursor(), segments=(*before, segment))


def saved_segments(saved: Mapping[str, Any], config: DataConfig) -> tuple[Segment, ...]:
    """The segments of a commit's state.json. One that has none is of one segment, planned by what `config` says."""
    if "segments" in saved:
        return tuple(Segment.from_dict(segment) for segment in saved["segments"])
    cursor = Cursor.from_dict(saved["cursor"])
    return (Segment(first_step=1, data=_plain(config), plan=saved["plan"], used={}, cursor=cursor),)


def plan_again(segment: Segment) -> Plan:
    """The plan of a segment, from indexes that lie where it had them. Raises ValueError if they are others."""
    config = data_config(segment.data)
    return Plan(config, open_indexes(config), segment.used)


def planned_step(saved: Mapping[str, Any], step: int) -> StepPlan:
    """What a run was fed in a step, from state.json of any commit of a later step. Raises ValueError."""
    return step_of([Segment.from_dict(segment) for segment in saved["segments"]], step, plan_again)


def _plain(config: DataConfig) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
