"""The messages that docs/parallelism.md lists are those that tests/parallel/test_announce.py counts."""

from pathlib import Path

from tests.harness.messages import EXAMPLES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "parallelism.md"
HEAD = "| axis | call | times | bytes | what for |"


def test_every_message_stands_on_the_page_and_no_other() -> None:
    lines = PAGE.read_text().splitlines()
    tables = [number for number, line in enumerate(lines) if line == HEAD]
    stages = [(name, stage) for name, example in EXAMPLES.items() for stage in example.by_stage]
    assert len(tables) == len(stages) > 3
    for start, (name, stage) in zip(tables, stages, strict=True):
        rows = []
        for line in lines[start + 2 :]:
            if not line.startswith("|"):
                break
            rows.append(line)
        assert rows == [f"| {m.axis} | {m.kind} | {m.calls} | {m.nbytes:,} | {m.purpose} |" for m in stage], name
