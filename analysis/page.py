"""One self-contained HTML page: pieces that escape what they are given, and the sheet that holds them.

Nothing is fetched when the page is opened: style is inline, pictures are data. It follows the reader's light or dark
setting, prints in black on white with every section on, and narrows to a phone.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_STYLE = """
:root { --paper: #ffffff; --ink: #1c1e21; --soft: #5b6168; --line: #d9dce0; --shade: #f4f5f7; --mark: #b3311a;
  --link: #0b5cad; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #17191c; --ink: #e6e8ea; --soft: #a3abb3; --line: #3a3f45;
  --shade: #212429; --mark: #ff8f73; --link: #7db7f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.2rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .4rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.3rem 0 .3rem; }
p, ul { margin: .5rem 0; } p, li, figcaption { max-width: 60rem; overflow-wrap: anywhere; } .notice { max-width: none; }
a { color: var(--link); } .soft { color: var(--soft); font-size: .92rem; }
.question { font-size: 1.1rem; border-left: 4px solid var(--link); padding: .1rem 0 .1rem .9rem; margin: .8rem 0; }
.notice { border: 1px solid var(--mark); border-left-width: 6px; padding: .5rem .9rem; margin: 1rem 0; }
nav ul { columns: 22rem; padding-left: 1.2rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; list-style: none; }
.tiles li { background: var(--shade); border-radius: .4rem; padding: .35rem .8rem; }
.tiles b { font-size: 1.25rem; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .92rem; margin-top: .3rem; }
.pan { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
@media (prefers-color-scheme: dark) { img { padding: .5rem; filter: brightness(.9); } }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .2rem 1.2rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .3rem; margin: .7rem 0; }
.tall { max-height: 34rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--shade); position: sticky; top: 0; white-space: nowrap; } .number { text-align: right; }
td { white-space: nowrap; } td.long { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
tr.strong td { font-weight: 650; }
pre { background: var(--shade); border-radius: .3rem; padding: .8rem 1rem; overflow-x: auto; }
code { font: .9rem/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
@media (max-width: 40rem) { body { padding: 1rem .8rem 3rem; } h1 { font-size: 1.35rem; }
  .pan img { max-width: max(100%, 38rem); } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #333; --line: #999; --shade: #eee; --link: #000; }
  body, p, li, figcaption { max-width: none; } body { font-size: 11pt; padding: 0; } nav { display: none; }
  .scroll, .tall, .pan { overflow: visible; max-height: none; } .scroll { border: 0; }
  .pan img { max-width: 100%; padding: 0; filter: none; } th { position: static; white-space: normal; }
  table { font-size: 8.5pt; } td { white-space: normal; }
  td.long { min-width: 7rem; } th, td { padding: .2rem .4rem; } pre { white-space: pre-wrap; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


#: What tells a page of ours.
GENERATOR = '<meta name="generator" content="sharpness-study">'

#: What the pages of older versions had in its place, and still have.
_ICON = '<link rel="icon" href="data:,">'


def is_ours(text: str) -> bool:
    """Whether an HTML page was made here, and may be made anew."""
    return GENERATOR in text or _ICON in text


@dataclass(frozen=True)
class Section:
    """A heading, the anchor the table of contents points at, and HTML that is already escaped."""

    anchor: str
    title: str
    body: str


def page(title: str, head: str, sections: Sequence[Section]) -> str:
    """The whole document; `title` and the sections' titles are plain text, `head` and bodies are HTML."""
    contents = "".join(f'<li><a href="#{escape(s.anchor)}">{escape(s.title)}</a></li>' for s in sections)
    body = "\n".join(
        f'<section id="{escape(s.anchor)}"><h2>{escape(s.title)}</h2>\n{s.body}</section>' for s in sections
    )
    # The empty icon keeps browsers from asking for favicon.ico.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{GENERATOR}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
{_ICON}
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
{head}</header>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
<main>
{body}
</main>
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph; `kind` is one of the sheet's classes: soft, question, notice."""
    return f"<p{_class(kind)}>{escape(text)}</p>\n"


def heading(text: str) -> str:
    """Plain text as a heading within a section."""
    return f"<h3>{escape(text)}</h3>\n"


def notice(lines: Sequence[str]) -> str:
    """What a reader must not miss: the first line, and the others as a list below it."""
    first, *rest = lines
    return f'<div class="notice">{paragraph(first)}{bullets(rest) if rest else ""}</div>\n'


def side_by_side(blocks: Iterable[str]) -> str:
    """HTML blocks beside each other where the page is wide enough, below each other on a phone."""
    return f'<div class="beside">{"".join(blocks)}</div>\n'


def bullets(lines: Iterable[str]) -> str:
    """Plain lines as a list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>\n"


def tiles(counts: Iterable[tuple[str, str]]) -> str:
    """(number, label) pairs side by side."""
    items = "".join(f"<li><b>{escape(number)}</b> {escape(label)}</li>" for number, label in counts)
    return f'<ul class="tiles">{items}</ul>\n'


def listing(text: str) -> str:
    """Plain text as code."""
    return f"<pre><code>{escape(text)}</code></pre>\n"


def picture(png: Path, alt: str, caption: str, dpi: int = 160) -> str:
    """A PNG file inside the page at its own size in inches, with text alternative and caption in plain text."""
    content = png.read_bytes()
    data = base64.b64encode(content).decode("ascii")
    # The header chunk of every PNG: width in pixels, and from the file's dots per inch the width on the page.
    width = int.from_bytes(content[16:20], "big") * 96 // dpi
    image = f'<img src="data:image/png;base64,{data}" width="{width}" alt="{escape(alt)}">'
    # On a phone it keeps a size at which its labels can be read, and is moved within the page.
    image = f'<div class="pan" tabindex="0">{image}</div>'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>\n"


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Iterable[str] = (),
    long: Iterable[str] = (),
    strong: Iterable[int] = (),
    tall: bool = False,
) -> str:
    """Plain text rows under `columns`.

    Args:
        numbers: columns set flush right.
        long: columns whose text may wrap.
        strong: indices of rows that stand out.
        tall: scroll within the page where the table is high.
    """
    kinds = ["number" if c in set(numbers) else "long" if c in set(long) else "" for c in columns]
    heads = "".join(f'<th scope="col"{_class(k)}>{escape(c)}</th>' for c, k in zip(columns, kinds, strict=True))
    marked = set(strong)
    lines = []
    for i, row in enumerate(rows):
        items = "".join(f"<td{_class(k)}>{escape(text)}</td>" for k, text in zip(kinds, row, strict=True))
        lines.append(f"<tr{_class('strong' if i in marked else '')}>{items}</tr>")
    scroll = "scroll tall" if tall and len(rows) > 20 else "scroll"
    # A region that scrolls has to be reachable by keyboard.
    return (
        f'<div class="{scroll}" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>\n"
    )


def _class(kind: str) -> str:
    return f' class="{escape(kind)}"' if kind else ""
