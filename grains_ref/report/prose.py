"""Pages that are written in Markdown, as they stand on a report."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from grains_ref.files import printable
from grains_ref.report.page import Section


@dataclass(frozen=True)
class Prose(Section):
    """A page of text and tables.

    text: Markdown; HTML in it is shown, not obeyed.  figures: name of an image in the text -> its SVG file's content.
    """

    text: str
    figures: Mapping[str, bytes] = field(default_factory=dict)
    title: str = "Results"

    template: ClassVar[str] = "prose.html"

    def context(self) -> dict[str, Any]:
        """See `Section`."""
        return {"body": self.rendered()}

    def rendered(self) -> Markup:
        """The text in HTML; images that are not among the figures are left out, links lead nowhere."""
        reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "reference"])
        tokens = reader.parse(printable(self.text, keep="\n\t"))
        for token in tokens:
            if token.children:
                token.children = [child for child in token.children if self._keep(child)]
        body = reader.renderer.render(tokens, reader.options, {})
        body = body.replace("<table>", '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>')
        return Markup(body.replace("</table>", "</table></div>"))

    def _keep(self, token: Token) -> bool:
        """Put the figure into an image; whether there is one."""
        if token.type != "image":
            return True
        figure = self.figures.get(str(token.attrs.get("src", "")))
        if figure is None:
            return False
        token.attrs["src"] = f"data:image/svg+xml;base64,{base64.b64encode(figure).decode()}"
        token.attrs["class"] = "drawn"
        return True
