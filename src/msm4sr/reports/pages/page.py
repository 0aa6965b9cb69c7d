"""A page from a template: one style sheet, a policy that forbids all else, and how numbers are written."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from msm4sr.reports.tables import metric_name


def number(value: float) -> str:
    """A metric to four digits after the point; a count with thousands marks."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def render(template: str, **values: object) -> str:
    """A page from a template; what is in `values` is escaped there."""
    style = files("msm4sr.reports.pages").joinpath("templates", "style.css").read_text(encoding="utf-8")
    # The policy names the style sheet by its hash: no other style, and no script at all, can take effect.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=PackageLoader("msm4sr.reports.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metric_name": metric_name, "number": number}
    return environment.get_template(template).render(style=Markup(style), style_hash=digest, **values)
