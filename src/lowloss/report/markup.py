"""What the HTML pages share: their frame and how they look."""

from __future__ import annotations

import base64
import html
from pathlib import Path


def beside(name: str) -> str:
    """The text of a file of this package."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def page(name: str, kind: str, sub: str, body: str, style: str = "", scripts: str = "") -> str:
    """A page headed by a name, which is escaped; everything else is HTML, CSS and script elements."""
    name = html.escape(name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name} · {kind}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<style>{beside("page.css")}{style}</style></head><body><main><h1>{name}</h1><p class="sub">{sub}</p>{body}'
        f"</main>{scripts}</body></html>"
    )


def data_url(picture: Path) -> str:
    """A PNG as part of a page."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
