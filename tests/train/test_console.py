"""The terminal's line: what it says, and of which steps."""

import pytest

from train.console import Console, duration

ROW = {
    "stage": "stage2", "step": 1, "skipped": None, "loss": 1.5, "grad_norm": 0.25, "step_tokens": 1000,
    "step_seconds": 2.0, "data_seconds": 0.5, "bubble": 0.25, "mfu": 0.5,
}  # fmt: skip


def test_rates_are_of_all_steps_since_the_line_before(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(every=3, started=0.0, from_progress=0.0, has_pipeline=True)
    console.add(ROW, 0.01, 2.0)
    for step, seconds, bubble in ((2, 1.0, 0.1), (3, 3.0, 0.3)):
        console.add({**ROW, "step": step, "step_seconds": seconds, "bubble": bubble, "mfu": 1 / seconds}, 0.25, 100.0)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("stage2  step     1    1%  loss 1.5000  norm 0.250")
    assert second == (
        "stage2  step     3   25%  loss 1.5000  norm 0.250      500 tokens/s  mfu 50.0%  data wait 25%  bubble 20%  "
        "5 min left"
    )


def test_a_step_left_out_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(every=10, started=0.0, from_progress=0.0, has_pipeline=False)
    console.add({**ROW, "step": 4, "skipped": "loss is nan", "loss": None, "grad_norm": None}, 0.5, 10.0)
    told = capsys.readouterr().out
    assert "skipped, loss is nan" in told and "10 s left" in told and "bubble" not in told


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(63.4, "63 s"), (720, "12 min"), (3 * 3600 + 1230, "3 h 20 min"), (448_000, "5 d 4 h"), (float("inf"), "?")],
)
def test_a_duration_is_said_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words
