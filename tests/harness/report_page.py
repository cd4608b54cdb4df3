"""A run's page read with html.parser: what a reader sees, and whatever should not be in it."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

# Every tag and attribute that the template and the charts write.
ALLOWED = {
    "html": {"lang"}, "head": set(), "meta": {"charset", "http-equiv", "content", "name"}, "title": set(),
    "style": set(), "body": set(), "h1": set(), "h2": set(), "h3": set(), "p": {"class"}, "div": {"class"},
    "span": {"class"}, "b": set(), "i": {"class"}, "dl": {"class"}, "dt": set(), "dd": set(), "figure": set(),
    "figcaption": set(), "svg": {"viewbox", "role"}, "path": {"class", "d"}, "text": {"x", "y", "text-anchor"},
    "img": {"src", "alt"}, "table": {"class"}, "tbody": set(), "tr": set(), "th": {"class"}, "td": {"class"},
    "details": set(), "summary": set(), "pre": set(), "section": {"class"},
}  # fmt: skip
_ALONE = ("meta", "img", "path")
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")
_SHAPE = re.compile(r"[MLHVZhlz0-9., -]*")


@dataclass
class Report(HTMLParser):
    """Grows while it is fed."""

    text: str = ""
    title: str = ""
    charts: int = 0
    pictures: int = 0
    foreign: list[str] = field(default_factory=list)
    """Tags and attributes that nothing of ours writes, and addresses outside the page."""
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by HTMLParser."""
        given = {name: value or "" for name, value in attrs}
        wrong = tag not in ALLOWED or set(given) - ALLOWED[tag] or not _SHAPE.fullmatch(given.get("d", ""))
        if wrong or (tag == "img" and not _PICTURE.fullmatch(given.get("src", ""))):
            self.foreign.append(self.get_starttag_text() or tag)
        self.charts += tag == "svg"
        self.pictures += tag == "img"
        if tag not in _ALONE:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by HTMLParser."""
        self.handle_starttag(tag, attrs)
        if tag not in _ALONE:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        """Called by HTMLParser."""
        if tag not in _ALONE and (not self._open or self._open.pop() != tag):
            self.foreign.append(f"</{tag}>")

    def handle_comment(self, data: str) -> None:
        """Called by HTMLParser."""
        self.foreign.append(f"<!--{data}")

    def unknown_decl(self, data: str) -> None:
        """Called by HTMLParser."""
        self.foreign.append(f"<![{data}")

    def handle_data(self, data: str) -> None:
        """Called by HTMLParser."""
        inside = self._open[-1] if self._open else ""
        if inside == "title":
            self.title += data
        elif inside == "style":
            if "url(" in data or "@import" in data:
                self.foreign.append("style")
        else:
            self.text += data


def read_report(text: str) -> Report:
    """The page of this HTML."""
    page = Report()
    page.feed(text)
    page.close()
    return page
