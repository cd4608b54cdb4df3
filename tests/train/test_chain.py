"""A later stage can say what an earlier one was, by digest."""

import hashlib
from pathlib import Path
from typing import Any

from tests.harness.commits import save_commit
from tests.train.toy_layouts import one
from train.chain import chain_after
from train.checkpoint.commits import Commit
from train.checkpoint.load import find_commit


def saved(run: Path, step: int, recipe: str, **told: Any) -> Commit:
    toy = one().fill()
    save_commit(run, step, toy.parameters, toy.boxes, toy, told, recipe, keep=9)  # type: ignore[arg-type]
    return find_commit(run)


def test_each_stage_adds_the_one_before(tmp_path: Path) -> None:
    first = saved(tmp_path / "1", 7, "seed: 1", stage="stage1", plan={"sources": [["captions", 1.0, "ab12"]]})
    second = saved(tmp_path / "2", 9, "seed: 2", stage="stage2", plan={"sources": []}, chain=chain_after(first))
    links = chain_after(second)
    assert [(link["stage"], link["step"], link["checkpoint"]) for link in links] == [
        ("stage1", 7, first.path.name),
        ("stage2", 9, second.path.name),
    ]
    assert links[0]["sources"] == [["captions", 1.0, "ab12"]] and links[0]["run"] == str(tmp_path / "1")
    assert links[0]["recipe_sha256"] == hashlib.sha256(b"seed: 1").hexdigest()
    files = (first.path / "files.json").read_bytes()
    assert links[0]["commit"] == hashlib.sha256(files).hexdigest()
    assert links[0]["data_sha256"] != links[1]["data_sha256"]


def test_weights_that_were_imported_are_a_link_as_well(tmp_path: Path) -> None:
    (link,) = chain_after(saved(tmp_path, 0, "", stage="import"))
    assert (link["stage"], link["tokens"], link["sources"]) == ("import", None, None)
