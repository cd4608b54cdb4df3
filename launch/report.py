"""`report.html`: one file with nothing outside it - curves as SVG, held-out pictures, questions and answers."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from data.index.file import Index, open_index
from data.types import RawSample
from data.visual.pictures import decode_image
from launch.judge import is_correct
from launch.questions import Question
from launch.result import STATES, Curve
from launch.score import Heldout, Score

EXAMPLES = 6  # a task
_WIDTH, _HEIGHT, _MARGIN = 340, 190, 36  # of a curve, in SVG units
_THUMBNAIL = 160  # pixels along the longer side
_SMOOTH = 0.9  # weight of the past in the drawn mean

Picture = dict[str, str]


def write_report(
    path: Path,
    result: Mapping[str, Any],
    curves: Mapping[str, Curve],
    scores: Mapping[str, Score],
    heldout: Heldout,
    folder: Path,
) -> None:
    """Write the page. `folder` holds the held-out sources, whose pictures are shown small."""
    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent))
    template = environment.get_template("report.html.jinja")
    page = template.render(
        result=result,
        states=STATES,
        curves={name: draw_curve(curve) for name, curve in curves.items()},
        summaries={name: curve.summary() for name, curve in curves.items()},
        examples={task: _examples(asked, scores, folder / task) for task, asked in heldout.questions.items()},
    )
    path.write_text(page, encoding="utf-8")


def draw_curve(curve: Curve) -> "jinja2.utils.markupsafe.Markup":
    """Loss over steps as an inline SVG: every step faint, an exponential mean over it."""
    smooth = exponential_mean(curve.losses)
    top = max(smooth[0], *curve.losses) * 1.02
    bottom = min(0.0, *curve.losses)
    last = max(curve.steps[-1], 2)

    def points(values: Sequence[float]) -> str:
        return " ".join(
            f"{_x(step, last):.1f},{_y(value, bottom, top):.1f}"
            for step, value in zip(curve.steps, values, strict=True)
        )

    labels = [
        f'<text x="{_MARGIN - 4}" y="{_y(value, bottom, top) + 4:.1f}" text-anchor="end">{value:.2g}</text>'
        for value in (bottom, (bottom + top) / 2, top)
    ]
    labels.append(f'<text x="{_WIDTH - 4}" y="{_HEIGHT - 8}" text-anchor="end">step {html.escape(str(last))}</text>')
    axes = f'<path d="M{_MARGIN},8 V{_HEIGHT - _MARGIN + 8} H{_WIDTH - 4}" class="axis"/>'
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{axes}{"".join(labels)}'
        f'<polyline class="raw" points="{points(curve.losses)}"/>'
        f'<polyline class="mean" points="{points(smooth)}"/></svg>'
    )
    return jinja2.utils.markupsafe.Markup(svg)  # numbers alone: nothing of a sample or a recipe is in it


def exponential_mean(values: Sequence[float]) -> list[float]:
    """Mean over the past with weights falling by `_SMOOTH` a step, without a bias towards the first value."""
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTH * total + value
        weight = _SMOOTH * weight + 1.0
        smooth.append(total / weight)
    return smooth


def _x(step: int, last: int) -> float:
    return _MARGIN + (step - 1) / (last - 1) * (_WIDTH - 4 - _MARGIN)


def _y(value: float, bottom: float, top: float) -> float:
    return _HEIGHT - _MARGIN + 8 - (value - bottom) / (top - bottom) * (_HEIGHT - _MARGIN)


def _examples(asked: Sequence[Question], scores: Mapping[str, Score], folder: Path) -> list[dict[str, Any]]:
    """The first questions of a task, whatever was answered: nothing is picked."""
    index = open_index(folder)
    return [
        {
            "pictures": thumbnails(index, question.number),
            "question": question.text,
            "expected": question.expected,
            "answers": [_answer(question, scores[state].answers[question.task][place]) for state in STATES],
        }
        for place, question in enumerate(asked[:EXAMPLES])
    ]


def _answer(question: Question, text: str) -> dict[str, Any]:
    return {"text": text, "right": is_correct(question.metric, question.expected, text)}


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
