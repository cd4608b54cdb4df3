"""`report.html`: one file with nothing outside it. Of one run (`triptych report RUN`, and at its end), or of the
quickstart's runs with what their models answered."""

import base64
import io
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from data.index.file import Index, open_index
from data.types import RawSample
from data.visual.pictures import decode_image
from launch.answering.judge import is_correct
from launch.answering.questions import Question
from launch.answering.score import Heldout, Score
from launch.pages.look import visible
from launch.pages.result import STATES
from launch.pages.run_view import Answer, Example, Examples, view
from launch.pages.story import read_story

log = logging.getLogger(__name__)
REPORT = "report.html"
EXAMPLES = 6  # a task
_THUMBNAIL = 160  # pixels along the longer side

Picture = dict[str, str]


def write_run_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, RUN/report.html if `out` is None. Raises ValueError if the run has no metrics, or
    `out` is a folder."""
    run_dir = Path(run_dir)
    path = Path(out) if out is not None else run_dir / REPORT
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    run = view(read_story(run_dir), run_dir.resolve().name)
    _write(path, title=run.name, runs=[run], result=None, examples=None)
    return path


def report_at_end(run_dir: str | Path) -> None:
    """Write a run's page where it has just ended; on the node of its first rank alone. What fails is only told."""
    try:
        starts = read_story(run_dir).starts
        if starts and starts[-1].get("host") == platform.node():
            print(f"the run's page is {write_run_report(run_dir)}", flush=True)
    except Exception as fault:  # a page must not change what became of the run
        log.warning("no page of %s was written: %s: %s", run_dir, type(fault).__name__, fault)


def write_quickstart_report(
    path: Path,
    result: Mapping[str, Any],
    runs: Mapping[str, Path],
    scores: Mapping[str, Score],
    heldout: Heldout,
    folder: Path,
) -> None:
    """Write the page of the quickstart.

    Args:
        runs: run folder of each training stage.
        folder: holds the held-out sources, whose pictures are shown small.
    """
    rows = {task: _examples(asked, scores, folder / task) for task, asked in heldout.questions.items()}
    _write(
        path,
        title="Triptych quickstart",
        runs=[view(read_story(run), name) for name, run in runs.items()],
        result=result,
        examples=Examples(states=STATES, rows=rows),
    )


def _write(path: Path, **told: Any) -> None:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(Path(__file__).parent)
    )
    environment.filters["visible"] = visible
    page = environment.get_template("report.html.jinja").render(states=STATES, **told)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)


def _examples(asked: Sequence[Question], scores: Mapping[str, Score], folder: Path) -> list[Example]:
    """The first questions of a task, whatever was answered: nothing is picked."""
    index = open_index(folder)
    return [
        Example(
            pictures=thumbnails(index, question.number),
            question=question.text,
            expected=question.expected,
            answers=[_answer(question, scores[state].answers[question.task][place]) for state in STATES],
        )
        for place, question in enumerate(asked[:EXAMPLES])
    ]


def _answer(question: Question, said: str) -> Answer:
    return Answer(said=said, right=is_correct(question.metric, question.expected, said))


def thumbnails(index: Index, number: int) -> list[Picture]:
    """A sample's pictures as data URLs in order of its members; a clip is shown by its first, middle and last frame."""
    raw: RawSample = index.read_raw(number)
    sizes = [index.media_size(row) for row in range(*index.media_range(number))]
    shown: list[Picture] = []
    for member, size in zip(sorted(raw.media), sizes, strict=False):
        _, content = raw.media[member]
        if size.kind == "image":
            shown.append({"url": _data_url(decode_image(content)), "what": "picture"})
        else:
            shown += [{"url": _data_url(frame), "what": "frame of a clip"} for frame in _clip_frames(content)]
    return shown


def _clip_frames(content: bytes) -> list[Image.Image]:
    import av  # PyAV is on every platform that decord is not

    with av.open(io.BytesIO(content), "r") as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[0], frames[len(frames) // 2], frames[-1]]


def _data_url(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
