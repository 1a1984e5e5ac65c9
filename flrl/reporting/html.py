"""Parts of a page as HTML; every string that is not `Html` already is escaped."""

import base64
import hashlib
import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


class Html(str):
    """Text that is HTML already."""


def text(value: Any) -> Html:
    """A value as HTML: escaped, unless it is HTML; None is empty.

    Example:
        >>> text("a < b"), text(None), text(Html("<b>"))
        ('a &lt; b', '', '<b>')
    """
    return value if isinstance(value, Html) else Html("" if value is None else html.escape(str(value)))


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """An element; underscores before an attribute's name are dropped, others become dashes.

    Example:
        >>> tag("p", "1 < 2", _class="a", data_value='"')
        '<p class="a" data-value="&quot;">1 &lt; 2</p>'
    """
    named = ((key.lstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    given = "".join(f' {key}="{html.escape(str(value))}"' for key, value in named)
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(parts: Iterable[Any]) -> Html:
    """Parts, one after the other."""
    return Html("".join(map(text, parts)))


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], *, label: str, sortable: bool = False, words: Sequence[int] = ()
) -> Html:
    """A table in a region that scrolls, whose first column heads its rows.

    Args:
        head: the columns' names.
        rows: a cell is a value, or a pair of what is shown and the value that it sorts by.
        label: the region's name, for screen readers.
        sortable: whether a click on a column's name sorts.
        words: numbers of the columns that hold words.
    """

    def cell(place: int, value: Any) -> Html:
        shown, sorted_by = value if isinstance(value, tuple) else (value, None)
        kind = {"_class": "text"} if place in words else {}
        if place == 0:
            return tag("th", shown, scope="row", data_value=sorted_by, **kind)
        return tag("td", shown, data_value=sorted_by, **kind)

    def heading(place: int, name: Any) -> Html:
        kind = {"_class": "text"} if place in words else {}
        if sortable:
            return tag("th", tag("button", name, type="button"), scope="col", aria_sort="none", **kind)
        return tag("th", name, scope="col", **kind)

    first = tag("thead", tag("tr", *(heading(place, name) for place, name in enumerate(head))))
    body = tag("tbody", *(tag("tr", *(cell(place, value) for place, value in enumerate(row))) for row in rows))
    whole = tag("table", first, body, _class="sortable" if sortable else None)
    return scrolling(whole, label)


def scrolling(content: Html, label: str) -> Html:
    """A table in a region that scrolls and can be reached by keyboard, with its name for screen readers."""
    return tag("div", content, _class="scroll", tabindex="0", role="region", aria_label=f"Table: {label}")


def folded(title: Any, *children: Any) -> Html:
    """Content that opens with a click on its title."""
    return tag("details", tag("summary", title), *children)


def tree(value: Any, name: str) -> Html:
    """Nested dicts and lists, each folded."""
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return folded(name, *(tree(part, str(key)) for key, part in items))
    return tag("div", f"{name}: ", tag("code", json.dumps(value, ensure_ascii=False)))


def tiles(items: Iterable[tuple[str, Any, str]]) -> Html:
    """Numbers in large: each with its name and a remark."""
    made = (tag("div", tag("dt", name), tag("dd", value, tag("small", remark))) for name, value, remark in items)
    return tag("dl", *made, _class="tiles")


def chart(number: int, title: str, *, wide: bool = False) -> Html:
    """The place of a chart, which the page's script draws."""
    caption = tag("figcaption", title)
    return tag("figure", caption, data_chart=number, _class="chart wide" if wide else "chart")


def page(title: str, head: Html, sections: Sequence[tuple[str, str, Html]], data: Mapping[str, Any]) -> str:
    """A whole page, which loads nothing.

    Args:
        title: its title.
        head: what comes before the sections.
        sections: of each an id, a title and the content; those without content are left out.
        data: what the script draws, as JSON.
    """
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # Only this very script runs, whatever a name or a tag holds, and nothing is ever requested.
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    # No string of the data may end its element.
    block = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    there = [section for section in sections if section[2]]
    links = tag("ul", *(tag("li", tag("a", name, href=f"#{id}")) for id, name, _ in there))
    parts = (tag("section", tag("h2", name, id=id), content, aria_labelledby=id) for id, name, content in there)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>{head}{tag('nav', links, aria_label='Sections')}</header>\n"
        f"<main>\n<noscript><p>Charts are drawn by this page's script.</p></noscript>\n{joined(parts)}\n</main>\n"
        f"<footer><p>Written by flrl; everything is in this file.</p></footer>\n"
        f'<script type="application/json" id="data">{block}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def write_page(path: Path, content: str) -> None:
    """Write a page, completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
