"""Defects for tests/prove/data_oss.py. Each breaks this process and returns how to mend it."""

import contextlib
import os
import time
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from tests.prove import data_defects
from tests.prove.planting import Mend, replace_name


def run_crc_off() -> Mend:
    """Samples of one request are believed as they come."""
    from data.formats.shards import parse_sample
    from data.index.file import Index

    def make(_: Any) -> Any:
        def planted(self: Any, i: int, count: int) -> list[Any]:
            columns = self.columns
            shard, start = self.shards[columns["shard"][i]], int(columns["offset"][i])
            sizes = [int(nbytes) for nbytes in columns["nbytes"][i : i + count]]
            data = self.store.read_range(shard.name, start, sum(sizes), shard.etag)
            places = [sum(sizes[:n]) for n in range(count + 1)]
            return [parse_sample(data[one:two], self.meta["format"]) for one, two in pairwise(places)]

        return planted

    return replace_name(Index, "read_run", make)


def runs_one_by_one() -> Mend:
    """Samples that lie side by side are asked for one by one."""
    from data.index.file import Index

    return replace_name(Index, "run_from", lambda _: lambda self, i, most: 1)


def range_check_off() -> Mend:
    """What comes is taken for the range that was asked for."""
    from data.store.oss_download import Download

    def make(_: Any) -> Any:
        def planted(self: Any, result: Any, first: int) -> int:
            self.etag = result.etag
            return self._offset + self._length - first

        return planted

    return replace_name(Download, "_check", make)


def no_if_match() -> Mend:
    """Requests do not say which object they mean."""
    import oss2

    def make(get_object: Any) -> Any:
        def planted(self: Any, key: str, byte_range: Any = None, headers: Any = None) -> Any:
            kept = {name: value for name, value in (headers or {}).items() if name != "If-Match"}
            return get_object(self, key, byte_range, kept)

        return planted

    return replace_name(oss2.Bucket, "get_object", make)


def etag_not_looked_at() -> Mend:
    """Neither side looks at the object's etag."""
    from data.store.oss_download import Download

    mend = no_if_match()

    def make(check: Any) -> Any:
        def planted(self: Any, result: Any, first: int) -> int:
            self.etag = result.etag
            return check(self, result, first)

        return planted

    mend_check = replace_name(Download, "_check", make)

    def both() -> None:
        mend_check()
        mend()

    return both


def start_over() -> Mend:
    """A body that broke is asked for from its beginning."""
    from data.store.oss_download import Download

    def make(go_on: Any) -> Any:
        def planted(self: Any, call: Any) -> bytes:
            self._received.clear()
            return go_on(self, call)

        return planted

    return replace_name(Download, "go_on", make)


def cut_body_taken() -> Mend:
    """A body that ends early is what there is."""
    from data.store.oss_download import Download

    def make(_: Any) -> Any:
        def planted(self: Any, call: Any, response: Any, due: int, request_id: str) -> None:
            self._received += response.response.raw.read(due, decode_content=False)

        return planted

    return replace_name(Download, "_read", make)


def slow_body_awaited() -> Mend:
    """Only the socket's own timeout ends a body."""
    from data.store import oss_download

    return replace_name(oss_download, "time", lambda _: SimpleNamespace(monotonic=lambda: 0.0))


def no_read_timeout() -> Mend:
    """Sockets wait for ever."""
    from oss2.http import Session

    def make(do_request: Any) -> Any:
        return lambda self, request, timeout: do_request(self, request, (timeout[0], None))

    return replace_name(Session, "do_request", make)


def limiter_of_a_process() -> Mend:
    """Every process has a limiter of its own, with the whole budget."""
    from data.store.limiter import NodeLimiter

    def make(open_file: Any) -> Any:
        def planted(self: Any) -> int:
            return os.open(f"{self.path}.{os.getpid()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

        return planted

    return replace_name(NodeLimiter, "_open", make)


def rejections_not_told() -> Mend:
    """The rate does not follow rejections."""
    from data.store.limiter import NodeLimiter

    return replace_name(NodeLimiter, "rejected", lambda _: lambda self, code: None)


def delays_not_heeded() -> Mend:
    """The rate does not follow what the service says it held back."""
    from data.store.limiter import NodeLimiter

    def make(served: Any) -> Any:
        return lambda self, nbytes, latency, delayed: served(self, nbytes, latency, False)

    return replace_name(NodeLimiter, "served", make)


def latency_not_heeded() -> Mend:
    """The rate does not follow latency."""
    from data.store.limiter import NodeLimiter

    return replace_name(NodeLimiter, "_follow_latency", lambda _: lambda self, state: None)


def latency_believed() -> Mend:
    """What followed the first cut is how things are, though the queue had had no time to drain."""
    from data.store import limiter

    return replace_name(limiter, "_TRIES", lambda _: 1)


def deep_cuts() -> Mend:
    """Every rejection takes nine tenths of the rate."""
    from data.store.limiter import NodeLimiter

    def make(cut: Any) -> Any:
        def planted(self: Any, bucket: Any, now: float) -> None:
            before = bucket.rate
            cut(self, bucket, now)
            bucket.rate = before if bucket.rate == before else before / 10

        return planted

    return replace_name(NodeLimiter, "_cut", make)


def retries_without_budget() -> Mend:
    """Every refused request is sent again."""
    from data.store.limiter import NodeLimiter

    return replace_name(NodeLimiter, "may_retry", lambda _: lambda self: True)


def retries_without_jitter() -> Mend:
    """Every reader waits equally long, and short."""
    from data.store import oss_requests

    return replace_name(oss_requests, "full_jitter", lambda _: lambda attempt, first, longest: first / 10)


def storm() -> Mend:
    """Neither budget nor jitter."""
    mends = retries_without_budget(), retries_without_jitter()
    return lambda: [mend() for mend in mends] and None


def limiter_kept_by_the_dead() -> Mend:
    """A lock that is a file, which a killed process leaves behind."""
    from data.store import limiter

    def make(fcntl: Any) -> Any:
        def flock(descriptor: int, operation: int) -> None:
            mark = os.readlink(f"/proc/self/fd/{descriptor}") + ".taken"  # noqa: PTH115
            if operation == fcntl.LOCK_UN:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(mark)  # noqa: PTH108
                return
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                try:
                    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                    return
                except FileExistsError:
                    time.sleep(0.001)
            os.unlink(mark)  # noqa: PTH108

        return SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_UN=fcntl.LOCK_UN)

    return replace_name(limiter, "fcntl", make)


def keys_fetched_by_everyone() -> Mend:
    """Each process fetches temporary keys for itself."""
    from data.store.credentials import _OncePerNode

    return replace_name(_OncePerNode, "_kept", lambda _: lambda self, stale: None)


def keys_not_renewed() -> Mend:
    """Keys are fetched once and for all."""
    from data.store.credentials import OssKeys

    return replace_name(OssKeys, "is_fresh", lambda _: property(lambda self: True))


def session_of_the_parent() -> Mend:
    """A forked process goes on with its parent's connections and counts."""
    from data.store.oss_requests import OssRequests

    return replace_name(OssRequests, "here", lambda _: property(lambda self: self._here))


def connections_thrown_away() -> Mend:
    """A connection is used once."""
    from urllib3 import HTTPConnectionPool

    return replace_name(HTTPConnectionPool, "_put_conn", lambda _: lambda self, connection: connection.close())


def texts_of_the_service() -> Mend:
    """Errors quote what the service says in full."""
    from data.store import oss_errors

    def make(of_service: Any) -> Any:
        def planted(error: Any) -> Any:
            fault = of_service(error)
            return oss_errors.RequestFault(kind=fault.kind, text=str(error), request_id=fault.request_id)

        return planted

    return replace_name(oss_errors, "_of_service", make)


def client_logs_all() -> Mend:
    """oss2 logs what it likes."""
    from data.store import oss_requests

    def make(get_logger: Any) -> Any:
        return lambda name: SimpleNamespace(setLevel=lambda level: get_logger(name).setLevel("DEBUG"))

    return replace_name(oss_requests, "getLogger", make)


def no_request_in_errors() -> Mend:
    """Errors do not say which request they are of."""
    from data.store import oss_requests

    def make(classify: Any) -> Any:
        from dataclasses import replace

        return lambda error: replace(classify(error), request_id="none")

    return replace_name(oss_requests, "classify", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "oss_crc_off": (data_defects.crc_off, ("oss/fault flipped at rest", "oss/fault flipped at rest, runs of 4")),
    "oss_run_crc_off": (run_crc_off, ("oss/fault flipped bit", "oss/fault text inside, runs of 4")),
    "oss_runs_one_by_one": (runs_one_by_one, ("oss/runs",)),
    "oss_range_check_off": (range_check_off, ("oss/fault range ignored", "oss/fault other range")),
    "oss_no_if_match": (no_if_match, ("oss/fault cut body",)),
    "oss_etag_not_looked_at": (etag_not_looked_at, ("oss/fault replaced",)),
    "oss_start_over": (start_over, ("oss/fault cut body",)),
    "oss_cut_body_taken": (cut_body_taken, ("oss/fault cut body",)),
    "oss_slow_body_awaited": (slow_body_awaited, ("oss/fault drip",)),
    "oss_no_read_timeout": (no_read_timeout, ("oss/fault stall", "oss/fault no answer")),
    "oss_limiter_of_a_process": (limiter_of_a_process, ("oss/limit requests, budget 2 capacities",)),
    "oss_rejections_not_told": (rejections_not_told, ("oss/limit requests, budget 2 capacities",)),
    "oss_delays_not_heeded": (delays_not_heeded, ("oss/silent limit",)),
    "oss_latency_not_heeded": (latency_not_heeded, ("oss/latency limit",)),
    "oss_latency_believed": (latency_believed, ("oss/latency limit",)),
    "oss_deep_cuts": (deep_cuts, ("oss/limit requests, budget 2 capacities",)),
    "oss_storm": (storm, ("oss/storm",)),
    "oss_retries_without_budget": (retries_without_budget, ("oss/storm",)),
    "oss_limiter_kept_by_the_dead": (limiter_kept_by_the_dead, ("oss/killed readers",)),
    "oss_keys_fetched_by_everyone": (keys_fetched_by_everyone, ("oss/refused tokens", "oss/expiring tokens")),
    "oss_keys_not_renewed": (keys_not_renewed, ("oss/expiring tokens",)),
    "oss_session_of_the_parent": (session_of_the_parent, ("oss/fork",)),
    "oss_connections_thrown_away": (connections_thrown_away, ("oss/connections",)),
    "oss_texts_of_the_service": (texts_of_the_service, ("oss/secrets",)),
    "oss_client_logs_all": (client_logs_all, ("oss/secrets",)),
    "oss_no_request_in_errors": (no_request_in_errors, ("oss/fault clock skew",)),
}
