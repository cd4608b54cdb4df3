"""What ranks look at together: each fault is found, with its cure, and ends all of them."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from launch.jobs import preflight as look
from launch.planning.speed import RESERVE_BYTES, RESERVE_SHARE
from parallel.config import ParallelConfig
from parallel.links import Speed
from tests.harness.looks import ODD, looked, missed
from tests.harness.runs import make_data, read_recipe, write_recipe
from tests.prove.context import Worlds
from train import preflight
from train.checks import Check
from train.config import RunConfig
from train.nodes import Facts, clock_check, folder_check, versions_check


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("preflight")
    recipe = write_recipe(folder / "recipe", make_data(folder / "data"), "stage2", ParallelConfig(), processes=2)
    return replace(read_recipe(recipe), run_dir=str(folder / "run"))


def test_one_table_for_all_ranks(worlds: Worlds, run: RunConfig) -> None:
    (lines, said), (others, also) = worlds.run(2, looked, run=run)
    assert said == also == "" and others == []
    assert [line.split("ok")[0].strip() for line in lines] == [
        "files",
        "store",
        "versions",
        "clocks",
        "run folder",
        "disk",
        "data axis",
    ]
    assert "on 2 nodes" in lines[2] and "(n0, n1)" in lines[-1] and "GB/s" in lines[-1]
    assert list(Path(run.run_dir).glob(".*")) == [], "what was left to be seen is gone"


def test_a_start_measures_no_links_on_a_cpu(worlds: Worlds, run: RunConfig) -> None:
    (lines, said), _ = worlds.run(2, looked, run=run, thorough=False)
    assert said == "" and [line.split()[0] for line in lines] == ["versions", "clocks", "run", "disk"]


@pytest.mark.parametrize("odd", sorted(set(ODD) - {"link"}))
def test_each_fault_ends_all_ranks_with_its_cure(worlds: Worlds, run: RunConfig, odd: str) -> None:
    assert missed(worlds.run(2, looked, run=run, odd=odd), odd) == []


def test_a_slow_link_is_named(worlds: Worlds, run: RunConfig) -> None:
    told = worlds.run(4, looked, run=run, odd="link")
    assert missed(told, "link") == [] and "ranks 1, 2 (n1, n2) has" in told[0][1]


def facts(host: str, **given: Any) -> Facts:
    told = {"versions": {"torch": "2.13.0", "code": "1"}, "clocks": [5.0, 6.0, 7.0], "sees_folder": True}
    return Facts(host=host, **{**told, **given})


def test_nodes_that_differ_are_named() -> None:
    odd = facts("n7", versions={"torch": "2.12.0", "code": "1"})
    check = versions_check([facts("n1"), facts("n2"), odd])
    assert not check.ok and "torch is 2.13.0 on n1, n2, 2.12.0 on n7; start all" in check.found


def test_a_rank_that_comes_late_has_no_wrong_clock(run: RunConfig) -> None:
    late = facts("n7", clocks=[65.0, 6.1, 67.0])  # held up by something else, twice
    assert clock_check([facts("n1"), facts("n2"), late]).ok
    behind = facts("n7", clocks=[-65.0, -64.1, -63.0])
    check = clock_check([facts("n1"), facts("n2"), behind])
    assert not check.ok and "that of n7 is 70.0 s behind, the limit is 5 s" in check.found
    unwritten = folder_check(run, [facts("n1", sees_folder=False)])
    assert not unwritten.ok and "n1 cannot write run_dir=" in unwritten.found


def test_room_is_that_of_the_checkpoints_to_come(run: RunConfig, tmp_path: Path) -> None:
    new = replace(run, run_dir=str(tmp_path), checkpoint=replace(run.checkpoint, keep=3))
    assert "3 + 1 checkpoints of 0.00655 GB need 0.0262 GB" in preflight.disk_check(new).found
    for step in range(5):
        seal = tmp_path / "checkpoints" / f"step_{step:08d}.00000000" / "COMMIT"
        seal.parent.mkdir(parents=True)
        seal.touch()
    assert "need 0.00655 GB" in preflight.disk_check(new).found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_slow_links_are_told_by_their_nodes(device: str) -> None:
    def told(speeds: list[float]) -> Check:
        each = [
            Speed(axis="data", ranks=(rank, (rank + 1) % 6), is_pair=True, gigabytes=speed)
            for rank, speed in enumerate(speeds)
        ]
        (check,) = preflight.link_checks([facts(f"n{rank}", speeds=each[rank : rank + 1]) for rank in range(6)], device)
        return check

    assert told([20.0, 21.0, 19.0, 20.0, 20.0, 20.0]).ok
    broken = told([20.0, 0.5, 0.5, 20.0, 20.0, 20.0])
    named = "ranks 1, 2 (n1, n2) has 0.5 GB/s; ranks 2, 3 (n2, n3) has 0.5 GB/s; look at the cables"
    assert not broken.ok and broken.name == "data axis" and named in broken.found
    plain = told([0.2] * 6)
    assert plain.ok == (device == "cpu") and (device == "cpu" or "NCCL_SOCKET_IFNAME" in plain.found)


def test_memory_is_held_to_the_room_of_the_gpu(run: RunConfig) -> None:
    assert "no GPU" in look.memory_line(run, 2, None).found
    sure, full = (float(x) for x in re.findall(r"([\d.]+) (?:GB of weights|with)", look.memory_line(run, 2, 1).found))
    assert 0 < sure < full

    def told(room: float) -> Check:
        return look.memory_line(run, 2, int((room * 1e9 + RESERVE_BYTES) / (1 - RESERVE_SHARE)))

    enough, tight, short = told(1.01 * full), told((sure + full) / 2), told(0.99 * sure)
    assert enough.line.startswith("  memory      ok ") and "are to be had of 3." in enough.found
    assert tight.ok and tight.line.startswith("  memory      note ") and "triptych plan" in tight.found
    assert not short.ok and "raise parallel.tensor or parallel.pipeline" in short.found


def test_a_run_folder_that_cannot_be_made_has_a_row(run: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wrong = replace(run, run_dir=str(tmp_path / "file" / "run"), data=replace(run.data, tokenizer="/nowhere"))
    folder, *others = look.begin(wrong)
    assert folder.name == "run folder" and not folder.ok
    assert "cannot write run_dir=" in folder.found and "give it rights and room there" in folder.found
    assert any("no tokenizer.json" in check.found for check in others), "all is told at once"
    assert look.begin(replace(run, run_dir=str(tmp_path / "a" / "b")))[0].name == "files"
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "a look leaves nothing"


def test_a_folder_that_the_first_rank_cannot_write_is_a_row_of_the_table(
    worlds: Worlds, run: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    wrong = replace(run, run_dir=str(tmp_path / "file" / "run"))
    (_, said), (_, also) = worlds.run(2, looked, run=wrong, thorough=False)
    assert said == also and "run folder: n0 cannot write run_dir=" in said


def test_wandb_has_what_it_needs(run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))

    def told(mode: Literal["disabled", "offline", "online"] = "online") -> Check:
        (check,) = look.wandb_checks(replace(run, log=replace(run.log, wandb=mode)))
        return check

    assert look.wandb_checks(replace(run, log=replace(run.log, wandb="disabled"))) == []
    assert told("offline").line.startswith("  wandb       ok    offline")
    without = told()
    assert without.ok and without.doubtful and "no key for api.wandb.ai" in without.found
    assert "`wandb login`, or set log.wandb=offline" in without.found
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    found = told()
    assert not found.doubtful and str(netrc) in found.found and "secret" not in found.found
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.of.ours:8080")
    assert told().doubtful and "no key for wandb.of.ours" in told().found
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert not told().doubtful and "secret" not in told().found
    monkeypatch.setattr(look.importlib.util, "find_spec", lambda name: None)
    assert not told("offline").ok and "pip install wandb" in told("offline").found


def test_a_refused_start_says_that_it_would_be_again(run: RunConfig, tmp_path: Path) -> None:
    from train.ending import read_ending

    wrong = replace(run, run_dir=str(tmp_path), data=replace(run.data, tokenizer="/nowhere"))
    (check,) = look.begin(wrong)
    ending = read_ending(tmp_path)
    assert not check.ok and ending is not None and ending.refused and ending.verdict == "failed"
    look.begin(replace(run, run_dir=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists(), "a look makes no folder"
