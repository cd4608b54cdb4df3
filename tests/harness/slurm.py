"""Real SLURM on this host: munged, slurmctld and two slurmd, on loopback, out of one folder. Needs root and Debian's
slurmctld, slurmd, slurm-client and munge."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
NODES = ("n1", "n2")


def missing() -> list[str]:
    """What this host lacks."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacks = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return lacks + (["root"] if os.geteuid() else [])


class Cluster:
    """Two nodes of one host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = dict(os.environ, SLURM_CONF=str(folder / "slurm.conf"))
        self.environment["PATH"] += ":/usr/sbin:/sbin"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, seconds: float = 60.0) -> None:
        """AssertionError if the nodes are not idle in time."""
        folder = self.folder
        (folder / "munge").mkdir(mode=0o700, parents=True)
        (folder / "munge" / "key").write_bytes(os.urandom(128))
        (folder / "munge" / "key").chmod(0o400)
        (folder / "state").mkdir()
        # One free port each, of slurmctld and of every node.
        ports = [_free_port() for _ in range(1 + len(NODES))]
        (folder / "slurm.conf").write_text(self._conf(ports))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")
        munge = folder / "munge"
        paths = [f"--{name}={munge / name}" for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")]
        paths[0] = f"--key-file={munge / 'key'}"
        self._run("munged", "--foreground", "--force", *paths)
        self._await(lambda: (munge / "socket").exists(), seconds, "munged")
        self._run("slurmctld", "-D")
        for node in NODES:
            self.bring_back(node)
        self._await(lambda: self.ask("sinfo", "-h", "-p", "all", "-o", "%T").split() == ["idle"], seconds, "nodes")

    def bring_back(self, node: str) -> None:
        """A node starts, as one that was repaired."""
        self._nodes[node] = self._run("slurmd", "-D", "-N", node)

    def lose(self, node: str) -> None:
        """A node is gone from one moment to the next: SLURM's daemons on it and all that they had started."""
        self._nodes[node].kill()
        self._nodes[node].wait()
        tasks = [path.parent for path in Path("/proc").glob("[0-9]*/environ") if _has(path, f"SLURMD_NODENAME={node}")]
        tasks = [path for path in tasks if _has(path / "environ", f"SLURM_CONF={self.folder}")]
        watchers = {_parent(path) for path in tasks}
        for pid in sorted(pid for pid in watchers if _has(Path(f"/proc/{pid}/comm"), "slurmstepd")):
            _kill(pid)
        for path in tasks:
            _kill(int(path.name))

    def order(self, *arguments: str, **environment: str) -> int:
        """Number of a job sent by `triptych slurm` from the root of the checkout."""
        command = [sys.executable, "-m", "launch.cli", "slurm", *arguments]
        given, root = self.environment | environment, Path(__file__).resolve().parents[2]
        done = subprocess.run(command, env=given, cwd=root, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.removeprefix("job ").partition(":")[0])

    def ask(self, *command: str) -> str:
        """stdout of a SLURM command; what it does not know is empty."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout

    def submit(self, *arguments: str, **environment: str) -> int:
        """Number of a job sent by sbatch from the root of the checkout."""
        command = ["sbatch", "--parsable", *arguments]
        root = Path(__file__).resolve().parents[2]
        given = self.environment | environment
        done = subprocess.run(command, env=given, cwd=root, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def job(self, number: int) -> dict[str, str]:
        """What scontrol says of a job: JobState, Restarts, ExitCode, ..."""
        told = self.ask("scontrol", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in told if "=" in word)

    def await_state(self, number: int, states: tuple[str, ...], seconds: float) -> dict[str, str]:
        """What scontrol says of a job once it is in one of `states`; AssertionError if it is in none in time."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number)).get("JobState") not in states:
            assert time.monotonic() < deadline, job
            time.sleep(0.1)
        return job

    def close(self) -> None:
        """End all jobs, then the daemons."""
        self.ask("scancel", "--full", "--state=RUNNING")
        self.ask("scancel", "--state=PENDING")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _run(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        log = (self.folder / f"{name}.{len(self._daemons)}.log").open("wb")
        program = shutil.which(name, path=self.environment["PATH"])
        assert program is not None
        daemon = subprocess.Popen([program, *arguments], env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self._daemons.append(daemon)
        return daemon

    def _await(self, there: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            logs = "".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("*.log")))
            assert time.monotonic() < deadline, f"no {what} after {seconds:.0f} s\n{logs}"
            time.sleep(0.1)

    def _conf(self, ports: list[int]) -> str:
        folder, host = self.folder, socket.gethostname().split(".")[0]
        nodes = "".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=2000 Gres=gpu:1\n"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        # linuxproc: torchrun makes each rank a session of its own, which pgid would lose sight of.
        # cred_expire: a job that was put back in the queue waits for so long.
        return f"""ClusterName=triptych
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SchedulerType=sched/builtin
GresTypes=gpu
ReturnToService=2
MailProg=/bin/true
KillWait=30
SlurmdTimeout=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}PartitionName=all Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=90
PartitionName=urgent Nodes={",".join(NODES)} MaxTime=INFINITE State=UP PriorityTier=9
"""


def _has(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Two nodes as long as this lasts."""
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
