"""What the HTML pages share: their templates, and what lies packed in them."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import math
from functools import cache
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

_PLAIN = {str, int, float, bool, type(None)}
_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def render(template: str, **values: Any) -> str:
    """A page from a template of this package, plotly packed in it. What is not HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("lowloss.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    return environment.get_template(template).render(plotly=_plotly(), **values)


@cache
def _plotly() -> str:
    return packed((resources("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"))


def packed(text: str) -> str:
    """A text as a page holds it: by gzip, in base64."""
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), 6, mtime=0)).decode()


def to_json(value: Any, exact: bool = False) -> str:
    """JSON; null for what is not finite. Numbers have five digits, more than a screen shows, or with `exact` all, but
    for those in single precision."""
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, dict):
        return "{" + ",".join([f"{json.dumps(str(key))}:{to_json(one, exact)}" for key, one in value.items()]) + "}"
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim == 1 and np.isfinite(value).all():
        form = repr if exact and value.dtype != np.float32 else "{:.5g}".format  # most of a page, so all at once
        return "[" + ",".join(map(form, value.tolist())) + "]"
    if exact and isinstance(value, list) and {*map(type, value)} <= _PLAIN:
        with contextlib.suppress(ValueError):  # or one is not finite
            return _encoder.encode(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return "[" + ",".join([to_json(one, exact) for one in value]) + "]"
    if isinstance(value, (float, np.floating)):
        digits = repr(float(value)) if exact and not isinstance(value, np.float32) else f"{value:.5g}"
        return digits if math.isfinite(value) else "null"
    if isinstance(value, np.integer):
        return str(int(value))
    return json.dumps(value if value is None or isinstance(value, (bool, int)) else str(value))


def data_url(file: Path) -> str:
    """An SVG as part of a page."""
    return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()
