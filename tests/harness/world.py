"""Worlds of gloo processes on loopback. Joining one costs a second or two, so one world runs many tasks."""

import faulthandler
import gc
import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.harness.server import forget_the_server, fork_context


class WorldFailure(AssertionError):
    """A task raised on some rank, or did not end in time; carries every rank's traceback or stack."""


class World:
    """`size` processes with torchrun's environment, each running the tasks it is sent."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._stacks = f"/tmp/triptych-stacks-{os.getpid()}-{size}"
        context = fork_context()
        port = _free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, theirs, self._stacks), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, task: Callable[..., Any], timeout: float = 240.0, **kwargs: Any) -> list[Any]:
        """Call `task(**kwargs)` on every rank; returns the results by rank. `task` must be importable."""
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((task, kwargs)))
        deadline = time.monotonic() + timeout
        results: list[Any] = [None] * self.size
        faults: list[str] = []
        for rank, pipe in enumerate(self._pipes):
            # Once one rank has failed the others may wait for it for ever: a short grace, then their stacks.
            grace = 5.0 if faults else max(0.0, deadline - time.monotonic())
            try:
                ready = pipe.poll(grace)
                kind, value = pickle.loads(pipe.recv_bytes()) if ready else ("hang", "no answer")
            except EOFError:
                kind, value = "died", f"exit code {self._processes[rank].exitcode}"
            if kind == "ok":
                results[rank] = value
            else:
                faults.append(f"rank {rank}: {kind}\n{value if ready else self._stack(rank)}")
        if faults:
            self.close()
            raise WorldFailure("\n".join(faults))
        return results

    def _stack(self, rank: int) -> str:
        process = self._processes[rank]
        if process.pid is None or not process.is_alive():
            return f"dead, exit code {process.exitcode}"
        os.kill(process.pid, signal.SIGUSR2)
        time.sleep(0.5)
        with open(f"{self._stacks}-{rank}") as file:
            return file.read()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for rank in range(self.size):
            Path(f"{self._stacks}-{rank}").unlink(missing_ok=True)


def gloo_groups() -> int:
    """How many gloo groups have a thread in this process, whoever holds them; a layout has sixteen."""
    return sum(path.read_text() == "gloo_tcp_loop\n" for path in Path("/proc/self/task").glob("*/comm"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve(rank: int, size: int, port: int, pipe: Connection, stacks: str) -> None:
    forget_the_server()
    with open(f"{stacks}-{rank}", "w") as file:
        faulthandler.register(signal.SIGUSR2, file=file, all_threads=True)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        _serve_tasks(pipe)


def _serve_tasks(pipe: Connection) -> None:
    import torch

    from parallel.world import joined_world

    torch.set_num_threads(1)
    # One default group for the life of the process: torch's store cannot make a second one on the same port.
    with joined_world(timeout_seconds=120.0):
        while True:
            try:
                task, kwargs = pickle.loads(pipe.recv_bytes())
            except EOFError:
                return
            try:
                answer = ("ok", task(**kwargs))
            except BaseException:
                answer = ("raised", traceback.format_exc())
            gc.collect()  # groups lie in cycles, and each keeps threads until it is collected
            pipe.send_bytes(pickle.dumps(answer))
