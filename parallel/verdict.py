"""Which rank ended a job, from what all of them say, and the words for it. Nothing here waits or talks to anyone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from parallel.grid import Grid
from parallel.place import Place, State

FAULT_CODE, MENDABLE_CODE, AGAIN_CODE = 1, 2, 75
"""Exit codes: something failed; the user can mend it by what the message says; the run was asked to end, has done so in
order and can be started again (EX_TEMPFAIL of sysexits.h). A signal's, where it ended the job at once, is 128 + its
number."""

CURE = "raise parallel.timeout_seconds if it only needs longer"

Names = Callable[[Place, int], Sequence[Sequence[str]]]
"""(place, data-parallel rank) -> names of the samples of each microbatch of that replica's step."""


How = Literal["asked", "stuck", "failed"]
"""A job ended: it was asked to and nothing failed; a rank did not go on; a fault."""
LostState = Literal["gone", "stopped", "silent", "never came"]
"""Of a rank that does not answer, the surest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Post:
    """Trouble, in the order in which the job's store got it."""

    rank: int
    """Whom it is about."""
    kind: Literal["raised", "stalled", "asked", "missed", "request", "stopped"]
    """It raised; it has not moved for too long; a signal asked it to end at once; another rank misses its signs of
    life. Or a signal asked it to end in order, which is no trouble yet; it has done so."""
    text: str
    """The error with its type, the signal's name, or how long."""
    message: str = ""
    """The error's own words."""
    where: str = ""
    """file:line of an error."""
    mendable: bool = False
    """The error is one whose message is all that the user needs."""
    of_a_peer: bool = False
    """The error says that a connection broke, which another rank's end does to its neighbours."""
    signal: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a living rank says of itself once there is trouble anywhere."""

    rank: int
    place: Place
    waits: bool
    """Its main thread waits for other ranks."""
    seconds: float
    """Since it has moved."""
    stack: str
    """Of the main thread, or the traceback of what it raised."""
    others: str
    """Stacks of its other threads."""
    calls: str = ""
    """Its last calls into process groups, the newest first, a line each."""
    neighbours: Mapping[int, tuple[State, Place | None]] = field(default_factory=dict)
    """State and place of the ranks of its host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """A rank that does not answer."""

    rank: int
    state: LostState
    seconds: float
    """Since its last sign of life."""
    place: Place | None
    exact: bool
    """The place is that of its end, and not that of its last sign of life."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that is known when the ranks that can answer have done so."""

    grid: Grid
    posts: Sequence[Post]
    answers: Mapping[int, Answer]
    lost: Mapping[int, Lost]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Who ended the job and how."""

    rank: int
    what: str
    """Follows the rank's name in a sentence."""
    code: int
    brief: bool = False
    """The same happened to every rank, and its own words say all: no stacks."""
    again: bool = False
    """The job was asked to end, and nothing failed."""
    no_progress: bool = False
    """Nothing failed that is known of: some rank does not go on, and another try may."""


def choose(facts: Facts) -> Verdict:
    """The rank that the others only followed.

    Ranks that are gone come first, because their neighbours' connections break and torchrun ends the rest; then errors
    that are no broken connection, then signals, then the rank that moves least without waiting for another one.
    """
    lost = [each for each in facts.lost.values() if each.state != "never came"]
    if lost:
        # The first to fall silent: NCCL ends processes whose peers have gone.
        first = min(lost, key=lambda each: (-each.seconds, get_args(LostState).index(each.state), each.rank))
        # A process that is gone has died of something, which may be the run's own; silence is mostly a host's.
        return Verdict(rank=first.rank, what=_of_lost(first), code=FAULT_CODE, no_progress=first.state != "gone")
    raised = [post for post in facts.posts if post.kind == "raised" and not post.of_a_peer]
    if raised:
        everywhere = {post.rank for post in raised if post.mendable} >= set(range(facts.grid.world_size))
        code = MENDABLE_CODE if raised[0].mendable else FAULT_CODE
        return Verdict(rank=raised[0].rank, what=f"raised {raised[0].text}", code=code, brief=everywhere)
    stopped = [post for post in facts.posts if post.kind == "stopped"]
    if stopped:  # by then what was to be saved is, whoever says so
        return Verdict(
            rank=stopped[0].rank, what=f"ended as {_request(facts)} asked", code=AGAIN_CODE, brief=True, again=True
        )
    asked = [post for post in facts.posts if post.kind == "asked"]
    if asked:
        everywhere = {post.rank for post in asked} >= set(facts.answers)
        what = f"was asked to end by {asked[0].text}"
        return Verdict(rank=asked[0].rank, what=what, code=128 + asked[0].signal, brief=everywhere, again=True)
    if facts.lost:
        rank = min(facts.lost)
        return Verdict(rank=rank, what=f"never joined the others; {CURE}", code=FAULT_CODE)
    broken = [post for post in facts.posts if post.kind == "raised"]
    if broken:
        return Verdict(rank=broken[0].rank, what=f"raised {broken[0].text}", code=FAULT_CODE)
    missed = [post for post in facts.posts if post.kind == "missed"]
    if missed:
        return Verdict(rank=missed[0].rank, what=f"gave {missed[0].text}", code=FAULT_CODE, no_progress=True)
    return _stalled(facts)


def _request(facts: Facts) -> str:
    return next((f"{post.text} to rank {post.rank}" for post in facts.posts if post.kind == "request"), "a signal")


def _of_lost(lost: Lost) -> str:
    if lost.state == "gone":
        return "is gone: its process was killed or crashed"
    if lost.state == "stopped":
        return f"is stopped (SIGSTOP), with no sign of life for {lost.seconds:.0f} s"
    return f"gave no sign of life for {lost.seconds:.0f} s: killed, frozen, or its host is gone"


def _stalled(facts: Facts) -> Verdict:
    working = [answer for answer in facts.answers.values() if not answer.waits]
    slowest = min(
        working or facts.answers.values(), key=lambda answer: (answer.place.progress, -answer.seconds, answer.rank)
    )
    if working:
        what = f"has stalled: it has not moved for {slowest.seconds:.0f} s and waits for no other rank; {CURE}"
    else:
        what = (
            f"is the least far of ranks that all wait for each other, for {slowest.seconds:.0f} s by now: not all made "
            f"the same collective call, or the network between them fails; {CURE}"
        )
    return Verdict(rank=slowest.rank, what=what, code=FAULT_CODE, no_progress=True)


def headline(verdict: Verdict, facts: Facts) -> str:
    """One line: rank, coordinates, place, what happened."""
    place, note = place_of(verdict.rank, facts)
    at = f", at {place}{note}," if place is not None else ""
    return f"{name_of(verdict.rank, facts.grid)}{at} {verdict.what.splitlines()[0]}"


def brief_lines(facts: Facts) -> str:
    """What all ranks met alike, each text once."""
    raised = [(f"{post.message} ({post.where})", post.rank) for post in facts.posts if post.kind == "raised"]
    place = facts.answers[min(facts.answers)].place
    stopped = [
        (f"ended as {_request(facts)} asked: {post.text}", post.rank) for post in facts.posts if post.kind == "stopped"
    ]
    asked = [(f"ended as {post.text} asked, at {place}", post.rank) for post in facts.posts if post.kind == "asked"]
    texts: dict[str, list[int]] = {}
    for text, rank in raised or stopped or asked:
        texts.setdefault(text, []).append(rank)
    return "".join(f"[{_ranks(ranks)}] {text}\n" for text, ranks in texts.items())


def report(verdict: Verdict, facts: Facts, names: Names | None) -> str:
    """The whole message: culprit, its samples, where every rank was, the stacks of all that live."""
    place, _ = place_of(verdict.rank, facts)
    lines = [headline(verdict, facts)]
    lines += [f"  {line}" for line in verdict.what.splitlines()[1:]]
    if place is not None and place.step and names is not None:
        lines += samples_at(place, names, facts.grid.coordinates(verdict.rank)[0])
    lines.append(f"where the {facts.grid.world_size} ranks are:")
    lines += [f"  {_state_of(rank, facts)}" for rank in range(facts.grid.world_size)]
    lines.append("stacks, innermost call last:")
    alike: dict[tuple[str, str], list[int]] = {}
    for rank, answer in sorted(facts.answers.items()):
        alike.setdefault((answer.stack, answer.others), []).append(rank)
    for (stack, others), ranks in alike.items():
        lines.append(f"{_ranks(ranks)}, main thread")
        lines += [f"  {line}" for line in (stack + others).splitlines()]
    for each in facts.lost.values():
        lines.append(f"rank {each.rank}: no stack, as it does not answer")
    return "\n".join(lines) + "\n"


def name_of(rank: int, grid: Grid) -> str:
    """A rank with its coordinates."""
    dp, tp, pp = grid.coordinates(rank)
    return f"rank {rank} (dp {dp}, tp {tp}, pp {pp})"


def place_of(rank: int, facts: Facts) -> tuple[Place | None, str]:
    """Where a rank is or was, and what to add to that."""
    if rank in facts.answers:
        return facts.answers[rank].place, ""
    lost = facts.lost.get(rank)
    if lost is None or lost.place is None:
        return None, ""
    return lost.place, "" if lost.exact else f" (as of {lost.seconds:.0f} s ago)"


def alone(answer: Answer, grid: Grid, names: Names | None) -> str:
    """What one rank says of itself, for a file of its own: place, samples, last calls, stacks of all its threads."""
    waits = "waits for other ranks" if answer.waits else "busy"
    lines = [f"{name_of(answer.rank, grid)}: {answer.place}; {waits} for {answer.seconds:.1f} s"]
    if answer.place.step and names is not None:
        lines += samples_at(answer.place, names, grid.coordinates(answer.rank)[0])
    lines.append("last calls into process groups, newest first:")
    lines += [f"  {line}" for line in answer.calls.splitlines()] or ["  none is recorded"]
    lines += [
        "main thread, innermost call last:",
        *(f"  {line}" for line in (answer.stack + answer.others).splitlines()),
    ]
    return "\n".join(lines) + "\n"


def samples_at(place: Place, names: Names, dp_rank: int) -> list[str]:
    """Lines with the samples of a place's microbatch, or of all of its step where it is in none."""
    try:
        named = names(place, dp_rank)
    except Exception as error:  # what else there is to say must not be lost with it
        return [f"  samples cannot be named: {error!r}"]
    which = range(len(named)) if place.microbatch is None else (place.microbatch,)
    return [f"  samples of microbatch {number}: {' '.join(named[number])}" for number in which]


def _state_of(rank: int, facts: Facts) -> str:
    place, note = place_of(rank, facts)
    return f"{name_of(rank, facts.grid)}: {f'{place}{note}; ' if place else ''}{_doing(rank, facts)}"


def _doing(rank: int, facts: Facts) -> str:
    if rank in facts.lost:
        return facts.lost[rank].state
    if rank not in facts.answers:
        return "done"
    if any(post.rank == rank and post.kind == "raised" for post in facts.posts):
        return "raised"
    answer = facts.answers[rank]
    last = f"; last call {answer.calls.splitlines()[0].partition(',')[0]}" if answer.calls else ""
    return f"{'waiting for other ranks' if answer.waits else 'busy'} for {answer.seconds:.1f} s{last}"


def _ranks(ranks: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> 'ranks 0-2, 5'."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    told = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {told}"
