"""Which rank is blamed, what is said of it, and where a killed process was. Whole jobs: tests/train/test_faults.py."""

import os
import signal
import subprocess
import sys
import timeit
from typing import Any

import pytest

from parallel.grid import Grid
from parallel.place import Board, Neighbour, Place, SharedMemory
from parallel.verdict import Answer, Facts, Lost, Post, brief_lines, choose, headline, report

GRID = Grid(world_size=4, tp_size=1, pp_size=2)


def answer(rank: int, phase: str = "forward", waits: bool = True, step: int = 7, seconds: float = 9.0) -> Answer:
    place = Place(phase=phase, step=step, microbatch=2 if phase == "forward" else None, data=(3, 40))
    return Answer(rank=rank, place=place, waits=waits, seconds=seconds, stack=f"main of {rank}\n", others="")


def facts(*posts: Post, answers: tuple[Answer, ...] | None = None, lost: tuple[Lost, ...] = ()) -> Facts:
    gone = {each.rank for each in lost}
    if answers is None:
        answers = tuple(answer(rank) for rank in range(4) if rank not in gone)
    return Facts(
        grid=GRID,
        posts=posts,
        answers={each.rank: each for each in answers},
        lost={each.rank: each for each in lost},
    )


def gone(rank: int, state: Any = "gone", seconds: float = 12.0) -> Lost:
    place = Place(phase="forward", step=7, microbatch=1, data=(3, 40))
    return Lost(rank=rank, state=state, seconds=seconds, place=place, exact=state == "gone")


def raised(rank: int, text: str = "KeyError: 'x'", **fields: Any) -> Post:
    return Post(rank=rank, kind="raised", text=text, message=text, where="a.py:1", **fields)


def asked(rank: int) -> Post:
    return Post(rank=rank, kind="asked", text="SIGTERM", signal=int(signal.SIGTERM))


BROKEN = "RuntimeError: Connection closed by peer"
STALLED = Post(rank=0, kind="stalled", text="no move for 9 s")


@pytest.mark.parametrize(
    ("given", "rank", "words", "code"),
    [
        # Neighbours of a killed rank raise before anybody can miss it, and torchrun ends the others.
        (facts(raised(0, BROKEN, of_a_peer=True), asked(1), asked(2), lost=(gone(3),)), 3, "is gone", 1),
        (facts(raised(1), lost=(gone(2, "silent"),)), 2, "no sign of life for 12 s", 1),
        (facts(lost=(gone(1, "silent"), gone(2, "stopped"))), 2, "stopped", 1),
        (facts(lost=(gone(1, seconds=2.0), gone(3, "silent"))), 3, "no sign of life for 12 s", 1),
        # The one with an error of its own, whoever was first.
        (facts(raised(3, BROKEN, of_a_peer=True), raised(2), raised(0)), 2, "raised KeyError", 1),
        (facts(raised(1, BROKEN, of_a_peer=True)), 1, "Connection closed", 1),
        (facts(raised(1, mendable=True)), 1, "raised KeyError", 2),
        # It stands still and waits for nobody, whoever noticed first.
        (facts(STALLED, answers=tuple(answer(rank, waits=rank != 2) for rank in range(4))), 2, "has stalled", 1),
        # A rank that is further than the culprit may be between two waits when it is asked.
        (
            facts(
                STALLED,
                answers=(answer(0), answer(1, "agree", waits=False), answer(2), answer(3, "data", waits=False)),
            ),
            3,
            "has stalled",
            1,
        ),
        (
            facts(STALLED, answers=(answer(0), answer(1), answer(2, "data"), answer(3, "reduce"))),
            2,
            "all wait for each other",
            1,
        ),
        (facts(asked(2)), 2, "asked to end by SIGTERM", 143),
        (facts(raised(1), lost=(gone(3, "never came"),)), 1, "raised KeyError", 1),
        (facts(lost=(gone(3, "never came"),)), 3, "never joined", 1),
        # It did answer in the end.
        (facts(Post(rank=2, kind="missed", text="no sign of life for 61 s")), 2, "no sign of life for 61 s", 1),
    ],
)
def test_the_rank_that_the_others_only_followed_is_blamed(given: Facts, rank: int, words: str, code: int) -> None:
    verdict = choose(given)
    assert (verdict.rank, verdict.code, verdict.brief) == (rank, code, False)
    assert words in headline(verdict, given)


def test_what_every_rank_met_is_said_once_in_its_own_words() -> None:
    refused = facts(*(raised(rank, "grid 3 is odd", mendable=True) for rank in (2, 0, 1, 3)))
    assert choose(refused).brief and choose(refused).code == 2
    assert brief_lines(refused) == "[ranks 0-3] grid 3 is odd (a.py:1)\n"
    different = facts(*(raised(rank, f"error {rank % 2}", mendable=True) for rank in range(4)))
    assert brief_lines(different) == "[ranks 0, 2] error 0 (a.py:1)\n[ranks 1, 3] error 1 (a.py:1)\n"

    ended = facts(*(asked(rank) for rank in range(4)))
    assert choose(ended).brief and choose(ended).code == 128 + 15
    assert brief_lines(ended) == "[ranks 0-3] ended as SIGTERM asked, at step 7, forward, microbatch 2\n"
    # An error that is no message to the user is told with stacks, however many ranks have it.
    assert not choose(facts(*(raised(rank) for rank in range(4)))).brief


def test_the_message_has_what_is_known_of_every_rank() -> None:
    given = facts(raised(0, BROKEN, of_a_peer=True), lost=(gone(3),))
    asked_for: list[tuple[tuple[int, int], int]] = []

    def names(place: Place, dp_rank: int) -> list[list[str]]:
        asked_for.append((place.data, dp_rank))
        return [["a:1"], ["a:7", "b:2"], ["a:3"]]

    told = report(choose(given), given, names).splitlines()
    assert told[0].startswith("rank 3 (dp 1, tp 0, pp 1), at step 7, forward, microbatch 1, is gone")
    assert told[1] == "  samples of microbatch 1: a:7 b:2" and asked_for == [((3, 40), 1)]
    assert "  rank 1 (dp 1, tp 0, pp 0): step 7, forward, microbatch 2; waiting for other ranks for 9.0 s" in told
    assert all(f"  main of {rank}" in told for rank in (0, 1, 2))
    assert told[-1] == "rank 3: no stack, as it does not answer"

    def broken(place: Place, dp_rank: int) -> list[list[str]]:
        raise OSError("index is gone")

    assert "samples cannot be named: OSError('index is gone')" in report(choose(given), given, broken)


def test_ranks_with_the_same_stack_share_it() -> None:
    answers = tuple(
        Answer(
            rank=rank, place=Place(), waits=rank != 1, seconds=1.0, stack="same\n" if rank != 1 else "own\n", others=""
        )
        for rank in range(4)
    )
    told = report(choose(facts(STALLED, answers=answers)), facts(STALLED, answers=answers), None)
    assert "ranks 0, 2-3, main thread\n  same\nrank 1, main thread\n  own\n" in told


def test_a_place_of_last_week_is_not_sold_as_the_last() -> None:
    given = facts(lost=(gone(1, "silent"),))
    assert "step 7, forward, microbatch 1 (as of 12 s ago), gave no sign" in headline(choose(given), given)


def test_a_board_is_read_after_its_process_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import time\n"
        "from parallel.place import Board, SharedMemory\n"
        "shared = SharedMemory()\n"
        "board = Board(shared.memory)\n"
        "board.begin_step(5, (2, 17))\n"
        "board.tell('backward', 3)\n"
        "print(shared.fd, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        fd = int(process.stdout.readline())
        assert Neighbour(process.pid, fd).place() is None  # a process of another parent may be anybody's
        monkeypatch.setattr(os, "getppid", os.getpid)
        neighbour = Neighbour(process.pid, fd)
        assert neighbour.state() == "alive"
        process.send_signal(signal.SIGSTOP)
        while neighbour.state() == "alive":
            pass
        assert neighbour.state() == "stopped"
        neighbour.kill()
        process.wait(timeout=60.0)
        assert neighbour.state() == "gone"
        assert str(neighbour.place()) == "step 5, backward, microbatch 3"
        place = neighbour.place()
        assert place is not None and place.data == (2, 17) and place.changes == 3
    finally:
        process.kill()
        process.wait()


def test_telling_costs_next_to_nothing() -> None:
    board = Board(SharedMemory().memory)
    assert min(timeit.repeat(lambda: board.tell("forward", 3), number=10_000, repeat=5)) / 10_000 < 20e-6
