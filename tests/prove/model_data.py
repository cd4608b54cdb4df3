"""The cases of the model proof about pictures, positions and clips (items 6, 7 and 8)."""

from collections.abc import Callable
from typing import Any

from tests.prove import model_data_measures as measures
from tests.prove.case import Case, Cell
from tests.prove.context import Context
from tests.prove.measures import wrong_positions

PICTURES, SIZES, SAMPLES, CLIPS = 200, 20_000, 500, 20_000


def data_model_cases() -> dict[str, Case]:
    """Every case by its key."""
    return {
        "pictures/transformers": _pictures(),
        "pictures/golden": _counted(6, "golden picture sizes that differ", "sizes", measures.wrong_golden_sizes),
        "pictures/sizes": _counted(
            6,
            "random sizes and limits that transformers resizes otherwise",
            "sizes",
            measures.wrong_random_sizes,
            count=SIZES,
        ),
        "pictures/colours": _counted(
            6, "picture files whose colours are not what a person sees", "files", measures.wrong_colours
        ),
        "pictures/named": _counted(
            6, "flawed pictures not reported by shard, key and member", "pictures", measures.unnamed_errors
        ),
        "mrope/golden": _counted(
            7, "tokens of the 3x2x2 clip and five words with other ids", "tokens", measures.golden_positions
        ),
        "mrope/transformers": _counted(
            7,
            "samples with other ids than get_rope_index, where the rule is the same",
            "samples",
            measures.positions_off_transformers,
            count=SAMPLES,
        ),
        "mrope/longer": _counted(
            7,
            "clips longer than their grid: ids off the rule, or get_rope_index no longer by height and width",
            "clips",
            measures.positions_off_rule,
            count=SAMPLES,
        ),
        "mrope/packed": _counted(
            7, "tokens of a packed row with another id than in the sample alone", "tokens", wrong_positions
        ),
        "clips/golden": _counted(
            8, "golden clips with other frames or another grid", "clips", measures.wrong_golden_clips
        ),
        "clips/cap": _clips(),
        "clips/frames": _counted(
            8, "decoded frames of a thinned clip that are not those of the rule", "frames", measures.wrong_frames
        ),
        "clips/still": _still(),
    }


def _counted(item: int, name: str, unit: str, measure: Callable[..., tuple[int, int]], **arguments: Any) -> Case:
    """One count of wrong things, which must be none out of many."""

    def run(context: Context) -> list[Cell]:
        wrong, total = context.run(1, measure, **arguments)[0]
        assert total > 0, "nothing was looked at"
        return [Cell(name=name, measured=wrong, limit=0, unit=f"of {total} {unit}")]

    return Case(item=item, names=(name,), run=run)


def _pictures() -> Case:
    names = (
        f"patches of {PICTURES} random files, every mode: largest difference to Qwen2VLImageProcessorPil",
        f"grids of {PICTURES} random files that differ from Qwen2VLImageProcessorPil's",
    )

    def run(context: Context) -> list[Cell]:
        largest, grids = context.run(1, measures.picture_differences, count=PICTURES)[0]
        return [
            Cell(name=names[0], measured=largest, limit=0, unit="absolute"),
            Cell(name=names[1], measured=grids, limit=0, unit="grids"),
        ]

    return Case(item=6, names=names, run=run)


def _clips() -> Case:
    names = (
        f"clips above their token cap in {CLIPS:,} random ones",
        f"clips below 4 tokens a temporal patch in {CLIPS:,} random ones",
        f"clips of odd, uneven or unplanned frames in {CLIPS:,} random ones",
    )

    def run(context: Context) -> list[Cell]:
        found = context.run(1, measures.clips_off_cap, count=CLIPS)[0]
        return [
            Cell(name=name, measured=value, limit=0, unit="clips") for name, value in zip(names, found, strict=True)
        ]

    return Case(item=8, names=names, run=run)


def _still() -> Case:
    name = "a still picture and a clip of one frame: largest difference between the two frames of a patch"

    def run(context: Context) -> list[Cell]:
        return [Cell(name=name, measured=context.run(1, measures.still_difference)[0], limit=0, unit="absolute")]

    return Case(item=8, names=(name,), run=run)
