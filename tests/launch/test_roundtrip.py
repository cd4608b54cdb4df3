"""A Hugging Face folder through a run on two ranks and back; every layout is in the model proof."""

from pathlib import Path

import pytest

from parallel.config import ParallelConfig
from tests.harness.compare import compare
from tests.harness.parity import IDS
from tests.harness.roundtrip import (
    export_to,
    folders_differ,
    import_and_save,
    import_on,
    logits_error,
    other_bits,
    round_model,
    tied_copies,
    train_on,
    write_random,
    write_tokenizer,
)
from tests.prove.context import Worlds

TENSOR, PIPELINE = ParallelConfig(tensor=2), ParallelConfig(pipeline=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("round") / "tokenizer", IDS)


@pytest.mark.parametrize(
    ("tied", "precision", "here", "there"), [(True, "bf16", PIPELINE, TENSOR), (False, "fp32", TENSOR, PIPELINE)]
)
def test_no_bit_is_lost_on_the_way(
    tied: bool,
    precision: str,
    here: ParallelConfig,
    there: ParallelConfig,
    tokenizer: Path,
    tmp_path: Path,
    worlds: Worlds,
) -> None:
    model, run_dir = round_model(tied), str(tmp_path / "run")
    start = write_random(tmp_path / "start", model, tokenizer, precision)
    shared = {"model": model, "precision": precision}
    got = worlds.run(2, import_on, parallel=here, folder=start, **shared)
    assert other_bits(got, start, model) == 0
    assert tied_copies(got) == (int(tied), 0)
    worlds.run(2, import_and_save, parallel=here, folder=start, run_dir=run_dir, tokenizer=str(tokenizer), **shared)
    back = export_to(run_dir, tmp_path / "back")
    assert folders_differ(start, back) == 0
    assert other_bits(worlds.run(2, import_on, parallel=there, folder=back, **shared), start, model) == 0
    if precision == "fp32":
        assert worlds.run(1, logits_error, run_dir=run_dir, folder=back, model=model)[0] < 1e-5


def test_tied_copies_stay_alike_and_learn_together(tokenizer: Path, tmp_path: Path, worlds: Worlds) -> None:
    model = round_model(tied=True)
    start = write_random(tmp_path / "start", model, tokenizer, "fp32")
    one = worlds.run(1, train_on, parallel=ParallelConfig(), folder=start, model=model, steps=2)
    two = worlds.run(2, train_on, parallel=PIPELINE, folder=start, model=model, steps=2)
    assert [tied_copies([rank[when] for rank in two]) for when in (0, 1)] == [(1, 0), (1, 0)]
    assert other_bits([rank[0] for rank in two], start, model) == 0
    assert other_bits([rank[1] for rank in two], start, model) > 0, "nothing was learned"
    assert compare([rank[2] for rank in one], [rank[2] for rank in two]).largest < 1e-5
