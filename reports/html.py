"""Escaped HTML from plain values. A page is one file without any link to another: styles and pictures stand in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template


@dataclass(frozen=True, slots=True)
class Section:
    """One heading of the report. `body` is HTML made by the functions of this module."""

    anchor: str
    title: str
    body: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document; `title` and `lead` are plain text."""
    template = Template(files("einsight.reports").joinpath("templates/page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        lead=escape(lead),
        contents="".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections),
        sections="".join(f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{s.body}</section>\n' for s in sections),
    )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def listing(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of plain-text cells; the columns whose places are in `numbers` are set to the right."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if place in numbers else ''}>{escape(text)}</{tag}>" for place, text in enumerate(texts)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f"<div class=wide><table><thead><tr>{cells('th', columns)}</tr></thead><tbody>\n{body}</tbody></table></div>"


def picture(svg: str, caption: str) -> str:
    """`svg` is an <svg> element drawn by this package; the caption is plain text."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
