"""A report: sections on one self-contained HTML page, which also shows itself in notebooks.

Everything on the page is in the one file; nothing is fetched.  Texts come from models, data and file names: each is
escaped where it is written (Jinja2's autoescape), characters that are not to be seen are written out (`printable`), and
the page's own rule (Content-Security-Policy) runs its one script and nothing else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2
from markupsafe import Markup

from grains_ref import __version__
from grains_ref.files import printable, write_whole

NOTEBOOK_HEIGHT = "34rem"
MINUS = "\u2212"


class Section:
    """A part of a report: a title, a template of `templates/` and what it is filled with."""

    title: str
    template: ClassVar[str]

    def context(self) -> Mapping[str, Any]:
        """The values of the template."""
        raise NotImplementedError

    @property
    def anchor(self) -> str:
        """The title as the end of an address."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:60] or "section"

    def body(self) -> Markup:
        """The section in HTML."""
        return Markup(environment().get_template(self.template).render(self.context()))

    def _repr_html_(self) -> str:
        return Report(self.title, [self])._repr_html_()


@dataclass(frozen=True)
class Report:
    """Sections on one page.

    lead: a sentence below the title.
    """

    title: str
    sections: Sequence[Section]
    lead: str = ""

    def html(self) -> str:
        """The page."""
        script = _source("page.js")
        names: dict[str, int] = {}
        parts = []
        for section in self.sections:
            names[section.anchor] = names.get(section.anchor, 0) + 1
            number = names[section.anchor]
            anchor = section.anchor if number == 1 else f"{section.anchor}-{number}"
            parts.append({"anchor": anchor, "title": section.title, "body": section.body()})
        return (
            environment()
            .get_template("page.html")
            .render(
                title=self.title,
                lead=self.lead,
                parts=parts,
                style=Markup(_source("style.css")),
                script=Markup(script),
                script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
                version=__version__,
            )
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page; the file appears whole or not at all.

        Raises:
            FileError: the file cannot be written there.
            OSError: the disk refuses.
        """
        write_whole(Path(path), self.html())

    def _repr_html_(self) -> str:
        """The page in a frame of its own: its style and its script stay apart from the notebook's."""
        frame = f"width:100%;height:{NOTEBOOK_HEIGHT};border:0;resize:vertical"
        return (
            f'<iframe sandbox="allow-scripts" title="{html.escape(printable(self.title))}" style="{frame}" '
            f'srcdoc="{html.escape(self.html())}"></iframe>'
        )


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, with autoescape on and unknown names refused."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["nats"] = nats
    made.filters["percent"] = percent
    made.filters["points"] = points
    return made


def _visible(value: object) -> object:
    """What a template writes: text without characters that nobody sees; markup of the templates is left alone."""
    return printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def nats(value: float) -> str:
    """A signed number in nats: two decimals, three where it is small."""
    digits = 2 if abs(value) >= 0.1 or value == 0 else 3
    return f"{value:+.{digits}f}".replace("-", MINUS)


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * value:+.1f}".replace("-", MINUS)
