"""An HTML page in one file: sections, tables, pictures; no scripts, no links out.

Sections are strings of HTML; every text given to these functions is escaped.
"""

import base64
import html
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from gaitjax.engine.atomic import replacing

STYLE = """
:root { --ink: #1d2430; --soft: #5b6675; --line: #e3e7ec; --blue: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #f5f6f8;
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { margin: 0 0 4px; font-size: 28px; line-height: 1.2; }
h2 { margin: 0 0 12px; font-size: 19px; }
h3 { margin: 20px 0 8px; font-size: 15px; }
p { margin: 0 0 12px; max-width: 78ch; }
.soft, figcaption { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0 18px; }
a { color: var(--blue); text-decoration: none; }
a:hover { text-decoration: underline; }
.cards { display: grid; gap: 12px; margin-bottom: 18px;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.card, section { background: #fff; border: 1px solid var(--line); border-radius: 8px; }
.card { padding: 12px 16px; }
.card b { display: block; font-size: 24px; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
section { padding: 20px 22px; margin-bottom: 18px; }
.scroll { overflow-x: auto; margin-bottom: 12px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { color: var(--ink); font-weight: 500; }
table.wide td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.pair { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
figure { margin: 0 0 12px; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: 13px; }
details { margin-top: 10px; }
summary { cursor: pointer; color: var(--blue); }
footer { padding-bottom: 40px; color: var(--soft); font-size: 13px; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def text(value: Any) -> str:
    """A cell's text: numbers short, None as a dash."""
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))


def paragraph(content: str, soft: bool = False) -> str:
    return f"<p{' class=soft' if soft else ''}>{html.escape(content)}</p>"


def cards(values: Mapping[str, Any]) -> str:
    """Headline numbers: {what: value}."""
    items = (
        f"<div class=card><b>{text(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in values.items()
    )
    return f"<div class=cards>{''.join(items)}</div>"


def table(
    rows: Mapping[str, Mapping[str, Any]], corner: str = "", heat: bool = False
) -> str:
    """{row: {column: value}}; absent cells are dashes. heat: percent are shaded."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    head = "".join(f"<th>{html.escape(name)}" for name in (corner, *columns))
    body = "".join(
        f"<tr><th>{html.escape(name)}"
        + "".join(_cell(row.get(column), heat) for column in columns)
        for name, row in rows.items()
    )
    return (
        f"<div class=scroll><table><thead><tr>{head}<tbody>{body}</table></div>"
        if rows
        else ""
    )


def _cell(value: Any, heat: bool) -> str:
    shade = ""
    if heat and isinstance(value, int | float) and value == value:
        shade = f' style="background: rgba(0, 114, 178, {0.45 * value / 100:.2f})"'
    return f"<td{shade}>{text(value)}"


def listing(values: Mapping[str, Any]) -> str:
    """{name: value} as a table of two columns."""
    body = "".join(
        f"<tr><td>{html.escape(name)}<td>{text(value)}"
        for name, value in values.items()
    )
    return f'<div class=scroll><table class="wide"><tbody>{body}</table></div>'


def folded(title: str, content: str) -> str:
    """Content that is shown after a click."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def side_by_side(*parts: str) -> str:
    return f"<div class=pair>{''.join(f'<div>{part}</div>' for part in parts)}</div>"


def picture(
    source: bytes | Callable[[Path], None], description: str, caption: str = ""
) -> str:
    """A PNG: its bytes, or a function that draws it to a path."""
    if callable(source):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            source(path)
            source = path.read_bytes()
    data = base64.b64encode(source).decode()
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><img alt="{html.escape(description)}" '
        f'src="data:image/png;base64,{data}">{below}</figure>'
    )


def write(
    path: str | PathLike,
    title: str,
    subtitle: str,
    sections: Sequence[tuple[str, str]] | Iterable[tuple[str, str]],
    *,
    headlines: Mapping[str, Any] | None = None,
    footer: str = "",
) -> None:
    """Writes the page; sections: (title, HTML), of which empty ones are left out."""
    kept = [(name, content) for name, content in sections if content]
    links = "".join(
        f'<a href="#s{i}">{html.escape(name)}</a>' for i, (name, _) in enumerate(kept)
    )
    body = "".join(
        f"<section id=s{i}><h2>{html.escape(name)}</h2>{content}</section>"
        for i, (name, content) in enumerate(kept)
    )
    with replacing(path) as file:
        file.write(
            '<!doctype html><html lang=en><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
            f"<header><h1>{html.escape(title)}</h1>{paragraph(subtitle, soft=True)}"
            f"<nav>{links}</nav></header><main>"
            f"{cards(headlines) if headlines else ''}{body}</main>"
            f"<footer>{paragraph(footer)}</footer></html>\n"
        )
