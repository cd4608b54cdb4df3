"""docs/metrics.md explains the keys of metrics.jsonl, all of them and no others."""

import json
import re
from dataclasses import replace
from pathlib import Path

from data.loading.rows import ReadStats
from data.visual.decode_cache import CacheCounters
from tests.train.test_metrics import REPORT, tiny_run
from train.metrics import Metrics
from train.state import TrainState

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


def test_every_key_stands_on_the_page_and_no_other(tmp_path: Path) -> None:
    metrics = Metrics(tiny_run(tmp_path), 1e12, from_step=0, from_progress=0.0)
    reading = ReadStats(cache=CacheCounters(hits=1))
    metrics.record(TrainState(step=1), replace(REPORT, reading=reading), progress=0.1, drift=0.0)
    metrics.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    heads = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE)
    keys = [key for head in heads for key in re.findall(r"`(\w+)`", head)]
    assert sorted(keys) == sorted(json.loads(line))
