"""One rank's part in the end of a job: what the ranks have said is gathered, judged once, told and kept."""

import time
from collections.abc import Callable
from pathlib import Path

from parallel.dump import dump_lost, keep, say
from parallel.grid import Grid
from parallel.peers import Order, Peers
from parallel.verdict import Facts, How, Lost, Names, brief_lines, choose, headline, place_of, report


class Limits:
    """How long is too long, in seconds, all of it from `parallel.timeout_seconds`: by then the job has ended."""

    def __init__(self, timeout_seconds: float) -> None:
        self.start = timeout_seconds
        """For a rank that has not joined yet: imports from a cold file system take their time."""
        self.stall = timeout_seconds / 2
        """Without a move: before the process groups' own limit, whose errors come from every rank and name none."""
        self.silence = min(60.0, timeout_seconds / 4)
        """Without a sign of life. A call that keeps Python's lock to itself looks like that."""
        self.answer = min(10.0, timeout_seconds / 5)
        """For an answer once there is trouble. torchrun kills after 30 s what it has asked to end."""
        self.settle = min(2.0, timeout_seconds / 10)
        """For what happens to every rank to have happened to all of them."""
        self.interval = min(2.0, timeout_seconds / 20)
        """Between signs of life."""


Conclude = Callable[[How, str, int], None]
"""Writes the run's verdict: how the job ended, the reason, and steps finished."""


class Judge:
    """Decides on the lowest rank that lives."""

    def __init__(self, peers: Peers, grid: Grid, limits: Limits, run_dir: Path, conclude: Conclude) -> None:
        self._peers = peers
        self._conclude = conclude
        self._grid = grid
        self._limits = limits
        self._folder = run_dir / "faults"

    def is_lowest(self, patience: float) -> bool:
        """Whether no lower rank lives. One message, as long as rank 0 does."""
        for rank in range(self._peers.rank):
            self._peers.look((rank,))
            if rank not in self._peers.done and self._peers.lost(rank, {}, patience) is None:
                return False
        return True

    def missed(self) -> dict[int, float]:
        """Seconds of silence of each rank that has been silent for too long; to be asked on the lowest rank alone."""
        ranks = range(self._grid.world_size)
        self._peers.look(ranks)
        found = {}
        for rank in set(ranks) - self._peers.done - {self._peers.rank}:
            limit = self._limits.silence if self._peers.has_come(rank) else self._limits.start
            if self._peers.silence(rank) > limit:
                found[rank] = self._peers.silence(rank)
        return found

    def facts(self, waited: float) -> Facts | None:
        """What is known after so many seconds of trouble; None while more may come."""
        ranks = set(range(self._grid.world_size))
        self._peers.look(ranks)
        answers, posts = self._peers.answers(), self._peers.posts()
        expected = ranks - self._peers.done - set(answers)
        patience = self._limits.answer if waited < 2 * self._limits.answer else 0.0
        lost: dict[int, Lost] = {}
        for rank in expected:
            if (found := self._peers.lost(rank, answers, patience)) is not None:
                lost[rank] = found
        told = {post.rank for post in posts if post.kind in ("raised", "asked", "stopped")}
        orderly = {post.kind for post in posts} <= {"request", "stopped"}
        settle = self._limits.answer if orderly else self._limits.settle  # files are still closed, uploads finished
        unsettled = told and not lost and not told >= set(answers) and waited < settle
        if expected - set(lost) or unsettled:
            return None
        return Facts(grid=self._grid, posts=posts, answers=answers, lost=lost)

    def judge(self, facts: Facts, names: Names | None) -> None:
        """Say who ended the job, let the other ranks go, and keep what was said in the run folder."""
        verdict = choose(facts)
        folder = self._folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}_rank_{verdict.rank}"
        path = folder.with_name(f"{folder.name}.txt")
        line = "" if verdict.brief else f"{headline(verdict, facts)}; told in {path}"
        message = brief_lines(facts) if verdict.brief else report(verdict, facts, names)
        say(message if verdict.brief else f"[rank {self._peers.rank}] the job ends: {message}kept in {path}\n")
        place, _ = place_of(verdict.rank, facts)
        reason = message.strip() if verdict.brief else headline(verdict, facts)
        how: How = "asked" if verdict.again else "stuck" if verdict.no_progress else "failed"
        self._conclude(how, reason, place.steps_done if place is not None else 0)
        lost = tuple(facts.lost)
        self._peers.publish(
            Order(
                code=verdict.code,
                teller=self._peers.rank,
                line=line,
                living=len(facts.answers),
                lost=lost,
                folder="" if verdict.brief else str(folder),
            )
        )
        if not verdict.brief:
            keep(path, message)
            dump_lost(str(folder), facts, names)
