"""What the message of a failed run says, against what was done to it."""

import re
from dataclasses import dataclass

from data.config import DataConfig
from data.loading.rows import open_indexes
from data.plan.plan import Cursor, Plan, assign_rows
from parallel.config import ParallelConfig
from parallel.grid import Grid
from tests.harness.faulty import STEP, Fault
from tests.harness.runs import Ended

HEAD = re.compile(
    r"^\[rank \d+\] the job ends: rank (?P<rank>\d+) \(dp (?P<dp>\d+), tp (?P<tp>\d+), pp (?P<pp>\d+)\), at step "
    r"(?P<step>\d+), (?P<phase>\w+)(?:, microbatch (?P<microbatch>\d+))?, (?P<what>.*)$",
    re.MULTILINE,
)
SAMPLES = re.compile(r"^  samples of microbatch (\d+): (.*)$", re.MULTILINE)
STACK = re.compile(r"^ranks? ([\d, -]+), main thread\n((?:  .*\n)+)", re.MULTILINE)
WHAT = {
    "raise": "raised RuntimeError: planted fault",
    "mendable": "raised ValueError: planted fault that a user can mend",
    "kill": "is gone: its process was killed or crashed",
    "stop": "is stopped (SIGSTOP)",
    "sleep": "has stalled",
    "spin": "gave no sign of life",
}
"""How the message has to go on after the rank."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run that a fault was planted in."""

    data: DataConfig
    parallel: ParallelConfig
    processes: int

    @property
    def grid(self) -> Grid:
        return Grid(world_size=self.processes, tp_size=self.parallel.tensor, pp_size=self.parallel.pipeline)

    def samples(self, rank: int) -> list[str]:
        """Of each microbatch of a rank's replica in step `STEP`, by following the plan from its start."""
        plan, cursor = Plan(self.data, open_indexes(self.data)), Cursor()
        for _ in range(STEP - 1):
            cursor = plan.step(cursor).next_cursor
        rows = plan.step(cursor).rows
        mine = assign_rows(rows, self.grid.dp_size)[self.grid.coordinates(rank)[0]]
        return [" ".join(f"{self.data.sources[s].name}:{index}" for s, index in rows[n].samples) for n in mine]


def wrong_in_report(run: Run, fault: Fault, ended: Ended) -> list[str]:
    """What is wrong or missing in what was printed about a fault of one rank."""
    found = list(HEAD.finditer(ended.output))
    if len(found) != 1:
        return [f"{len(found)} reports"]
    assert fault.rank is not None
    head = found[0]
    dp, tp, pp = run.grid.coordinates(fault.rank)
    numbered = fault.where in ("forward", "backward")
    expected = {
        "rank": str(fault.rank),
        "dp": str(dp),
        "tp": str(tp),
        "pp": str(pp),
        "step": str(STEP),
        "phase": "data" if fault.where == "decode" else fault.where,
        "microbatch": str(fault.microbatch) if numbered else None,
    }
    wrong = [f"{key} is {head[key]}, not {value}" for key, value in expected.items() if head[key] != value]
    if not head["what"].startswith(WHAT[fault.kind]):
        wrong.append(f"it {head['what']}")
    samples = run.samples(fault.rank)
    due = {fault.microbatch: samples[fault.microbatch]} if numbered else dict(enumerate(samples))
    named = {int(number): names for number, names in SAMPLES.findall(ended.output)}
    if named != due:
        wrong.append(f"samples are {named}, not {due}")
    return wrong + _wrong_stacks(run, fault, ended) + _wrong_around(run, fault, ended)


def _wrong_stacks(run: Run, fault: Fault, ended: Ended) -> list[str]:
    """Every rank that can has to show its stack, and the culprit alone the place where the fault lies."""
    shown: dict[int, str] = {}
    for ranks, stack in STACK.findall(ended.output):
        for part in ranks.split(", "):
            first, _, last = part.partition("-")
            shown |= dict.fromkeys(range(int(first), int(last or first) + 1), stack)
    silent = {fault.rank} if fault.kind in ("kill", "stop", "spin") else set()
    wrong = []
    if shown.keys() != set(range(run.processes)) - silent:
        wrong.append(f"stacks of ranks {sorted(shown)}")
    guilty = {rank for rank, stack in shown.items() if "in strike" in stack}
    if guilty != {fault.rank} - silent:
        wrong.append(f"the fault lies in the stacks of ranks {sorted(guilty)}")
    return wrong


def _wrong_around(run: Run, fault: Fault, ended: Ended) -> list[str]:
    """Every other living rank says one line of its own; nothing else is printed as if a rank had failed by itself."""
    lines = re.findall(r"^\[rank \d+\] ended with the job: rank (\d+) ", ended.output, re.MULTILINE)
    living = run.processes - (fault.kind in ("kill", "stop", "spin"))
    wrong = [] if lines == [str(fault.rank)] * (living - 1) else [f"ranks {lines} are blamed by the others"]
    # torchrun has a traceback of its own, and what a rank raised stands in the report.
    tracebacks = len(re.findall(r"^Traceback", ended.output, re.MULTILINE))
    return wrong + ([f"{tracebacks} tracebacks beside the report"] if tracebacks > 1 else [])


def wrong_in_file(run: Run, fault: Fault, rank: int, text: str) -> list[str]:
    """What is wrong or missing in the file that a rank has left, or that was left for it."""
    head = re.match(r"rank (\d+) \(.*?\): step (\d+), (\w+)(?:, microbatch (\d+))?; (.*)", text)
    if head is None or (int(head[1]), int(head[2])) != (rank, STEP):
        return [f"it begins with {text.splitlines()[:1]}"]
    samples = run.samples(rank)
    due = {int(head[4]): samples[int(head[4])]} if head[4] else dict(enumerate(samples))
    named = {int(number): names for number, names in SAMPLES.findall(text)}
    wrong = [] if named == due else [f"samples are {named}, not {due}"]
    if rank == fault.rank and fault.kind in ("kill", "stop", "spin"):
        return wrong if "no stack, as it does not answer" in text else [*wrong, "a stack of a rank that has none"]
    if not re.search(r"^  gloo:\w+ \d+ of \w+, .* begun [\d.]+ s ago, (not )?ended$", text, re.MULTILINE):
        wrong.append("no call into a process group")
    if ("in strike" in text) != (rank == fault.rank) or "main thread, innermost call last:" not in text:
        wrong.append("it is another stack")
    return wrong
