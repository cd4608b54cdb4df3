"""The limiter of a node, on a clock that tests turn, and over real processes."""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.store import limiter as limiter_module
from data.store.config import LimiterConfig, OssConfig
from data.store.limiter import NodeLimiter, full_jitter, shared_folder
from tests.harness.oss_limits import killed_readers
from tests.harness.oss_readers import in_processes


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limiter_module, "time", clock)
    return clock


def make(folder: Path, what: str = "one", **changes: float) -> NodeLimiter:
    return NodeLimiter(what, LimiterConfig(**{"folder": str(folder / "limits"), "start": 1.0, **changes}))  # type: ignore[arg-type]


def test_requests_and_bytes_are_let_through_at_their_rates(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path, requests_per_second=100, bytes_per_second=1e6)
    for _ in range(500):
        limiter.acquire(10)
    assert clock.now - 1000 == pytest.approx(5.0, rel=0.01)
    limiter = make(tmp_path, "two", requests_per_second=100, bytes_per_second=1e6)
    before = clock.now
    for _ in range(50):
        limiter.acquire(100_000)
    assert clock.now - before == pytest.approx(5.0, rel=0.01)
    clock.now += 1000
    before = clock.now
    for _ in range(100):  # what was not used in a pause is not made up for
        limiter.acquire(10)
    assert clock.now - before > 0.85


def read_at(limiter: NodeLimiter, clock: Clock, speed: float, seconds: float) -> None:
    """So many requests a second are served, however many are allowed."""
    end = clock.now + seconds
    while clock.now < end:
        waited = limiter.acquire(1000)
        limiter.served(1000, 0.01, delayed=False)
        clock.now += max(0.0, 1 / speed - waited)


def test_a_rejection_cuts_to_what_was_served_once_in_half_a_second(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path, requests_per_second=1000)
    read_at(limiter, clock, 300, 3)
    for _ in range(5):
        limiter.rejected("TotalQpsLimitExceeded")
    assert limiter.rates[0] == pytest.approx(0.85 * 300, rel=0.05)
    assert limiter.rates[1] == 1e9  # the code tells which
    clock.now += 0.6
    limiter.rejected("DownloadTrafficRateLimitExceeded")
    assert limiter.rates[0] == pytest.approx(0.85 * 300, rel=0.05)
    assert limiter.rates[1] < 1e9
    for _ in range(40):
        clock.now += 0.6
        limiter.rejected("ServiceUnavailable")
    assert limiter.rates[0] == pytest.approx(10)


def test_a_rate_grows_only_while_it_holds_somebody_back(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path, requests_per_second=100)
    read_at(limiter, clock, 40, 3)
    limiter.rejected("QpsLimitExceeded")
    low = limiter.rates[0]
    read_at(limiter, clock, 10, 10)
    assert limiter.rates[0] == pytest.approx(low, rel=0.01)
    read_at(limiter, clock, 1e6, 10)
    assert limiter.rates[0] == pytest.approx(low + 10 * 0.01 * 100, rel=0.03)
    read_at(limiter, clock, 1e6, 70)
    assert limiter.rates[0] == 100


def test_a_told_delay_cuts_and_one_slow_answer_does_not(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path, requests_per_second=1000)
    read_at(limiter, clock, 500, 3)
    limiter.served(1000, 5.0, delayed=False)
    read_at(limiter, clock, 500, 1)
    assert limiter.rates[0] == 1000
    limiter.served(1000, 0.01, delayed=True)
    assert limiter.rates[0] == pytest.approx(0.85 * 500, rel=0.05)


def answer(limiter: NodeLimiter, clock: Clock, latency: float, seconds: float) -> list[float]:
    """Rates after each answer, all of which take so long."""
    end, rates = clock.now + seconds, []
    while clock.now < end:
        limiter.acquire(1000)
        limiter.served(1000, latency, delayed=False)
        rates.append(limiter.rates[0])
    return rates


def test_a_queue_at_the_service_has_time_to_drain(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path, requests_per_second=1000, increase=1e-4)
    answer(limiter, clock, 0.01, 3)
    assert min(answer(limiter, clock, 0.2, 2.0)) == pytest.approx(850, rel=0.01), "it drains in 1.3 s"
    assert min(answer(limiter, clock, 0.01, 5)) >= 850
    assert min(answer(limiter, clock, 0.2, 0.5)) == pytest.approx(0.85 * 850, rel=0.01), "the next queue is cut at once"


def test_latency_that_no_cut_mends_is_how_things_are(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path, requests_per_second=1000, increase=1e-4)
    answer(limiter, clock, 0.01, 3)
    rates = answer(limiter, clock, 0.2, 15)
    assert min(rates) == pytest.approx(1000 * 0.85**4, rel=0.01)
    assert rates[-1] == pytest.approx(1000, rel=0.01), "it is given back"
    assert min(answer(limiter, clock, 0.2, 15)) == pytest.approx(1000, rel=0.01)


def test_what_was_refused_meanwhile_is_not_given_back(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path, requests_per_second=1000, increase=1e-4)
    answer(limiter, clock, 0.01, 3)
    answer(limiter, clock, 0.2, 9)
    assert limiter.rates[0] == pytest.approx(1000 * 0.85**4, rel=0.01)
    limiter.rejected("QpsLimitExceeded")
    assert max(answer(limiter, clock, 0.2, 30)) < 1000 * 0.85**4


def test_a_rate_doubles_each_second_until_something_is_refused(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path, requests_per_second=800, start=0.125)
    assert limiter.rates[0] == 100
    read_at(limiter, clock, 1e6, 1.0)
    assert limiter.rates[0] == pytest.approx(200, rel=0.05)
    limiter.rejected("QpsLimitExceeded")
    low = limiter.rates[0]
    read_at(limiter, clock, 1e6, 1.0)
    assert limiter.rates[0] == pytest.approx(low + 8, rel=0.05)


def test_retries_are_a_share_of_requests(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path)
    first = sum(limiter.may_retry() for _ in range(1000))
    assert 0 < first <= 20
    for _ in range(100):
        limiter.acquire(0)
    assert 10 <= sum(limiter.may_retry() for _ in range(1000)) <= 11
    clock.now += 5
    assert sum(limiter.may_retry() for _ in range(1000)) == 5


def test_backoff_is_spread_over_the_whole_of_a_doubling_interval() -> None:
    for attempt, most in ((0, 0.2), (3, 1.6), (50, 20.0)):
        pauses = [full_jitter(attempt, 0.2, 20.0) for _ in range(2000)]
        assert min(pauses) < 0.05 * most and 0.95 * most < max(pauses) <= most


def test_a_file_of_another_boot_or_with_rubbish_is_begun_anew(tmp_path: Path, clock: Clock) -> None:
    limiter = make(tmp_path, requests_per_second=100)
    limiter.acquire(10)
    clock.now = 5.0
    limiter.acquire(10)
    assert limiter.rates[0] == 100
    limiter.path.write_bytes(b"\xff" * limiter.path.stat().st_size)
    assert make(tmp_path, requests_per_second=100).rates[0] == 100
    limiter.path.unlink()  # by a cleaner of temporary files
    other = make(tmp_path, requests_per_second=100)
    other.rejected("QpsLimitExceeded")
    assert limiter.rates == other.rates and other.rates[0] < 100


def take(seed: int, build: Callable[[], NodeLimiter], seconds: float) -> int:
    limiter = build()
    end = time.monotonic() + seconds
    taken = 0
    while time.monotonic() < end:
        limiter.acquire(1)
        taken += 1
    return taken


def test_processes_share_one_budget(tmp_path: Path) -> None:
    inherited = make(tmp_path, requests_per_second=200)
    builds = (lambda: inherited, lambda: make(tmp_path, requests_per_second=200))
    for build in builds:
        started = time.monotonic()
        taken = sum(in_processes(4, take, 120, build=build, seconds=2.0))
        most = 200 * (time.monotonic() - started) + 20 + 4  # with what a pause saves up, and one under way in each
        assert 100 < taken <= most


def test_a_killed_process_leaves_nothing_stuck() -> None:
    found = killed_readers(kills=15)
    assert found["longest wait"] < 60 and found["share of the rate lost"] == 0


def test_the_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    made = shared_folder(None)
    assert made == tmp_path / f"triptych-{os.getuid()}" and stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    with pytest.raises(ValueError, match=r"mode 700.*it has mode 755"):
        shared_folder(None)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="nobody else may enter"):
        shared_folder(str(tmp_path / "link"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint": "oss.example.com"}, "http"),
        ({"endpoint": "https://user:key@oss.example.com"}, "user"),
        ({"region": "oss/cn"}, "cn-hangzhou"),
        ({"credentials": "LTAI-a-key"}, "must be env"),
        ({"credentials": "uri:http://host/keys?secret=1"}, "must be env"),
        ({"connections": 0}, "connections is 0"),
        ({"first_backoff_seconds": 30.0}, "30.0 and 20.0"),
    ],
)
def test_a_config_that_cannot_be_says_why_and_shows_no_key(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        OssConfig(**changes)
    assert "LTAI" not in str(caught.value) and "secret=1" not in str(caught.value)


def test_limits_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="requests_per_second"):
        LimiterConfig(requests_per_second=0)
    with pytest.raises(ValueError, match=r"decrease is 1\.5"):
        LimiterConfig(decrease=1.5)


def test_endpoints_follow_from_the_region() -> None:
    assert OssConfig().address == "https://oss-cn-hangzhou.aliyuncs.com"
    assert OssConfig(region="cn-beijing", internal=True).address == "https://oss-cn-beijing-internal.aliyuncs.com"
