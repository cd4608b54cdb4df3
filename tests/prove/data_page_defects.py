"""Defects of boxes and of the page of samples, for tests/prove/data_chat.py. Each returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.prove.planting import Mend, replace_name


def boxes_not_scaled() -> Mend:
    """Pixels are written as they are."""
    from data.encoding import grounding

    return replace_name(grounding, "_nearest", lambda _: lambda value, side: min(int(value), 999))


def boxes_rounded_down() -> Mend:
    """Numbers go to the thousandth below."""
    from data.encoding import grounding

    return replace_name(grounding, "_nearest", lambda _: lambda value, side: min(int(value * 1000 / side), 999))


def width_for_height() -> Mend:
    """Both directions are scaled by the width."""
    from data.encoding import grounding

    def make(_: Any) -> Any:
        def planted(box: Any, scale: Any) -> Any:
            width, _ = (scale, scale) if isinstance(scale, int) else scale
            return tuple(grounding._nearest(side, width) for side in box)

        return planted

    return replace_name(grounding, "thousandths", make)


def far_edge_1000() -> Mend:
    """The far edge is written as 1000."""
    from data.encoding import grounding

    return replace_name(grounding, "_nearest", lambda _: lambda value, side: int(value * 1000 / side + 0.5))


def autoescape_off() -> Mend:
    """The page takes text for HTML."""
    import jinja2

    def make(environment: Any) -> Any:
        return lambda autoescape, **more: environment(autoescape=False, **more)

    return replace_name(jinja2, "Environment", make)


def page_mask_shifted() -> Mend:
    """The page marks the place that predicts, not the token that is learnt."""
    import launch.pages.page

    def make(tokens: Any) -> Any:
        def planted(encoded: Any, tokenizer: Any) -> Any:
            targets = encoded.targets.copy()
            targets[:-1] = targets[1:]
            return tokens(replace(encoded, targets=targets), tokenizer)

        return planted

    return replace_name(launch.pages.page, "_tokens", make)


def page_of_stored_pictures() -> Mend:
    """The page shows pictures as they are stored."""
    import base64

    from launch.pages.paint import Painter

    def make(_: Any) -> Any:
        def planted(self: Any, raw: Any, member: int, size: Any) -> list[str]:
            return ["data:image/png;base64," + base64.b64encode(raw.media[member][1]).decode()]

        return planted

    return replace_name(Painter, "urls", make)


def page_of_other_colours() -> Mend:
    """The page mistakes red for blue."""
    import launch.pages.paint

    return replace_name(launch.pages.paint, "unpatched", lambda real: lambda *given: real(*given)[..., ::-1])


def page_boxes_in_pixels() -> Mend:
    """The page takes thousandths for pixels of the picture it shows."""
    import launch.pages.page

    def make(find: Any) -> Any:
        return lambda text: [replace(one, box=tuple(side * 84 // 1000 for side in one.box)) for one in find(text)]

    return replace_name(launch.pages.page, "find_boxes", make)


def page_blocks_its_pictures() -> Mend:
    """The page holds its pictures and forbids browsers to show them."""
    import jinja2

    def make(environment: Any) -> Any:
        def planted(**given: Any) -> Any:
            made = environment(**given)
            name = "inspect.html.jinja"
            source = made.loader.get_source(made, name)[0]
            made.loader = jinja2.DictLoader({name: source.replace("img-src data:", "img-src 'none'")})
            return made

        return planted

    return replace_name(jinja2, "Environment", make)


PAGE_PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    f"chat_{apply.__name__}": (apply, tuple(f"chat/{case}" for case in cases))
    for apply, *cases in (
        (boxes_not_scaled, "grounding"),
        (boxes_rounded_down, "boxes"),
        (width_for_height, "boxes"),
        (far_edge_1000, "boxes"),
        (autoescape_off, "page"),
        (page_mask_shifted, "page"),
        (page_of_stored_pictures, "page"),
        (page_of_other_colours, "page"),
        (page_boxes_in_pixels, "page"),
        (page_blocks_its_pictures, "page"),
    )
}
