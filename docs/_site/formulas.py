"""Formulas become MathML when the site is built: browsers draw it by themselves, without a script from elsewhere."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, *, page: Any, config: Any, files: Any) -> str:
    """Each formula that `pymdownx.arithmatex` marked."""

    def drawn(formula: re.Match[str]) -> str:
        display = "block" if formula[1] == "div" else "inline"
        mathml = convert(html.unescape(formula[2]).strip(), display=display)
        return f'<{formula[1]} class="formula">{mathml}</{formula[1]}>'

    return FORMULA.sub(drawn, content)
