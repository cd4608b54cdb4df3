"""Ends the whole job when one of its ranks raises, dies or stalls, with one message that says which, where and why.

Each rank has a thread that gives signs of life, learns of trouble on any rank (parallel/peers.py), answers with its own
place and stacks, and leaves when all do. The lowest rank that lives judges and speaks (parallel/judge.py). Main threads
may be stuck in a collective all the while: nothing here needs them.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch.distributed as dist

from parallel import calls, stacks
from parallel.config import ParallelConfig
from parallel.dump import dump_own, keep, say
from parallel.grid import Grid
from parallel.judge import Conclude, Judge, Limits
from parallel.pace import Pace
from parallel.peers import Order, Peers, own_store
from parallel.place import OPEN_ENDED, Board, SharedMemory, kill_the_others
from parallel.stop import Stop
from parallel.verdict import FAULT_CODE, Answer, Names, Post, name_of
from parallel.world import world_size_from_launcher

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""They ask a run to end. torchrun hands on SIGHUP too, whatever it was told to do about it, when a terminal closes."""
_BROKEN = ("onnection closed by peer", "onnection reset", "roken pipe", "onnection refused", "imed out", "NCCL error")
"""What gloo, NCCL and sockets say on the ranks around one that has ended, or never came."""
_ALERT_SECONDS = 0.1


class Watch:
    """Watches this rank and the others as long as its `with` lasts. Enter it in the main thread, before the world.

    Signals that ask a process to end are taken over meanwhile: torchrun sends them as soon as one rank has gone, and
    the others still have something to say. A job that is asked to end from outside does so in order while it trains
    (parallel/stop.py); at once before and after that, and when it is asked again.
    """

    def __init__(
        self,
        config: ParallelConfig,
        run_dir: str | Path,
        mendable: tuple[type[BaseException], ...],
        conclude: Conclude = lambda how, reason, step: None,
    ) -> None:
        """Args:
        run_dir: gets a file in `faults/` where there is something to tell.
        mendable: errors whose message is all that the user needs, if every rank raises one.
        conclude: called by the rank that ends the job, or by each rank that ends alone.
        """
        self._conclude = conclude
        self._timeout = config.timeout_seconds
        self._limits = Limits(config.timeout_seconds)
        self._rank = int(os.environ.get("RANK", "0"))
        self._grid = Grid(world_size=world_size_from_launcher(), tp_size=config.tensor, pp_size=config.pipeline)
        self._run_dir = Path(run_dir)
        self._mendable = mendable
        self._shared = SharedMemory()
        self.board = Board(self._shared.memory)
        """Where the main thread says what it is at."""
        self.names: Names | None = None  # of samples, once there is a plan
        self.stop = Stop(self._rank, self._grid.world_size, lambda: own_store(self._timeout), self.say_stopped)
        self.paces: Callable[[], Mapping[int, Pace]] = dict  # what each rank's work took, as the lowest rank has heard
        self._over = threading.Event()
        self._met = threading.Event()
        self._to_post: list[Post] = []
        self._traceback: str | None = None
        self._signal = 0
        self._spot: Any = None
        self._moved = time.monotonic()
        self._ears, self._bell = socket.socketpair()
        for end in (self._ears, self._bell):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._peers = Peers(own_store(self._timeout), self._rank, self._grid.world_size, self._shared.fd)
        self.paces = self._peers.paces
        self._outermost = stacks.depth() - 1
        self._judge = Judge(self._peers, self._grid, self._limits, self._run_dir, self._conclude)
        # Python runs its handlers in the main thread, which may be stuck; the bell rings all the same.
        self._old_bell = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, self.park_main_thread) for number in SIGNALS}
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.raised(error)
        self._over.set()
        self._ring()
        self._thread.join()
        stacks.is_not_held()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_bell)
        self._ears.close()
        self._bell.close()
        self._shared.close()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell of errors before the process groups are left, which other ranks would take for this one's death.

        Enter it when all ranks have joined: it lets nothing begin before this rank can see where its neighbours are.
        """
        if self._thread.is_alive():
            self._ring()
            self._met.wait(self._timeout)
        try:
            yield
        except BaseException as error:
            self.raised(error)
        self.board.tell("end")

    def raised(self, error: BaseException) -> NoReturn:
        """Tell of an error of the main thread. The process ends with the job."""
        if self.stop.dropped:  # what is being saved does not need the main thread, nor what it was stuck in
            self._thread.join()
        last = traceback.extract_tb(error.__traceback__)[-1]
        words = "".join(traceback.format_exception_only(error)).strip()
        mendable = isinstance(error, self._mendable)
        self._traceback = "".join(traceback.format_exception(error))
        self._to_post.append(
            Post(
                rank=self._rank,
                kind="raised",
                text=words,
                message=str(error),
                where=f"{last.filename}:{last.lineno}",
                mendable=mendable,
                of_a_peer=not mendable and any(part in words for part in _BROKEN),
            )
        )
        self._ring()
        self._thread.join(self._timeout)
        say(self._traceback)  # nobody else will
        os._exit(FAULT_CODE)

    def stopped(self, text: str) -> NoReturn:
        """Say that the run has ended in order, with all saved and closed. The process ends with the job."""
        sys.stdout.flush()  # what ends the process does not
        self.say_stopped(text)
        self._thread.join()
        os._exit(FAULT_CODE)  # not reached

    def say_stopped(self, text: str) -> None:
        """The same from another thread."""
        self._to_post.append(Post(rank=self._rank, kind="stopped", text=text))
        self._ring()

    def park_main_thread(self, number: int, _: FrameType | None) -> None:
        """Handler of `SIGNALS`: hold the main thread still until the process ends, unless it ends in order.

        What reads data does not hear these signals (data/child.py), so a main thread that goes on has sound data.
        """
        if self.stop.requested:
            return
        self._thread.join(self._timeout)
        os._exit(128 + number)

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._peers.beat(self.board.read(), pace=self.board.spent.pace)
                stacks.tell_if_held(0.75 * self._limits.silence)  # before it is taken for lost, and killed
                if self._peers.meet_neighbours():
                    self._met.set()
                self._notice()
                self._tell()
                kinds = {post.kind for post in self._peers.posts()}
                if kinds - {"request"}:
                    self._end_with_the_job()
                if kinds:
                    self.stop.hear()
                self._listen(self._limits.interval)
            self._peers.beat(self.board.read(), done=True)
        except dist.DistError as error:
            self._end_alone(f"the job's store is gone, and with it torchrun or its node: {str(error).splitlines()[0]}")
        except BaseException:
            self._end_alone(f"its watch failed: {traceback.format_exc()}")

    def _listen(self, seconds: float) -> None:
        """Wait until something happens to this rank, at most `seconds`."""
        if select.select([self._ears], [], [], seconds)[0]:
            for number in self._ears.recv(4096):
                if number in SIGNALS:
                    self._signalled(number)

    def _signalled(self, number: int) -> None:
        meaning = self.stop.signalled()
        text = signal.Signals(number).name
        if meaning == "first":
            self.stop.hear()
            self._to_post.append(Post(rank=self._rank, kind="request", text=text, signal=number))
        if meaning == "now":
            self._signal = number
            self._to_post.append(Post(rank=self._rank, kind="asked", text=text, signal=number))

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it rings already
            self._bell.send(b"\0")

    def _notice(self) -> None:
        """Look for ranks that do not move or give no sign of life."""
        place, wait = self.board.read(), stacks.waits_for_ranks()
        if (place.changes, wait) != self._spot:
            self._spot, self._moved = (place.changes, wait), time.monotonic()
        seconds = time.monotonic() - self._moved
        limit = self._limits.start if place.phase == "start" else self._limits.stall
        if seconds > limit and (wait is not None or place.phase not in OPEN_ENDED) and not self.stop.dropped:
            self._to_post.append(Post(rank=self._rank, kind="stalled", text=f"no move for {seconds:.0f} s"))
        if self._judge.is_lowest(self._limits.silence):
            for rank, seconds in self._judge.missed().items():
                text = f"no sign of life for {seconds:.0f} s"
                self._to_post.append(Post(rank=rank, kind="missed", text=text))

    def _tell(self) -> bool:
        """Post what there is to post; whether there was anything."""
        told = bool(self._to_post)
        while self._to_post:
            self._peers.post(self._to_post.pop(0))
        return told

    def _end_with_the_job(self) -> NoReturn:
        """Answer, help to judge, and leave as soon as there is an order."""
        started = time.monotonic()
        self._answer()
        while (order := self._peers.order()) is None:
            waited = time.monotonic() - started
            if self._judge.is_lowest(self._limits.answer):
                facts = self._judge.facts(waited)
                if facts is not None and self._peers.may_judge():
                    self._judge.judge(facts, self.names)
                    continue
            if waited > 3 * self._limits.answer:
                self._end_alone("there is trouble in the job, and no rank that tells of it")
            self._listen(_ALERT_SECONDS)
            self._peers.beat(self.board.read())
            if self._tell():
                self._answer()
        self._leave(order)

    def _answer(self) -> None:
        self._answered = Answer(
            rank=self._rank,
            place=self.board.read(),
            waits=stacks.waits_for_ranks() is not None,
            seconds=time.monotonic() - self._moved,
            stack=self._traceback or stacks.main_stack(self._outermost),
            others=stacks.other_stacks(),
            calls=calls.last_calls(),
            neighbours=self._peers.neighbours(),
        )
        self._peers.answer(self._answered)

    def _leave(self, order: Order) -> NoReturn:
        """End this process when every rank has its orders: the store may go with the first that leaves."""
        if order.line and order.teller != self._rank:
            say(f"[rank {self._rank}] ended with the job: {order.line}\n")
        if order.folder:
            dump_own(order.folder, self._answered, self._grid, self.names, self._limits.settle)
        started = time.monotonic()
        with suppress(dist.DistError):
            self._peers.leave()
            while self._peers.left() < order.living and time.monotonic() - started < self._limits.settle:
                time.sleep(_ALERT_SECONDS / 2)
        self._peers.kill(order.lost)
        self._exit(order.code)

    def _end_alone(self, why: str) -> NoReturn:
        """End this process without having heard what the others do."""
        if not self._signal:
            place = f"{name_of(self._rank, self._grid)} at {self.board.read()}"
            say(f"[rank {self._rank}] {place}: {why}\n")
            path = self._run_dir / "faults" / f"alone_rank_{self._rank}_{os.getpid()}.txt"
            keep(
                path, f"{place}: {why}\n{self._traceback or stacks.main_stack(self._outermost)}{stacks.other_stacks()}"
            )
        asked = bool(self._signal) or self.stop.heard
        self._conclude("asked" if asked else "failed", f"rank {self._rank}: {why}", self.board.read().steps_done)
        self._exit(128 + self._signal if self._signal else FAULT_CODE)

    def _exit(self, code: int) -> NoReturn:
        """End the process from this thread, and its decoders, which may not see that nobody waits for them any more."""
        if os.getsid(0) == os.getpid():  # torchrun makes each rank a session of its own, so all of the group is ours
            kill_the_others()
        os._exit(code)
