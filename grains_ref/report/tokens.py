"""Tokens for people: coloured by their scores, called by name, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from rich.text import Text
from torch import Tensor

from grains_ref.files import printable
from grains_ref.grains import Encoded, Selection

POSITIVE, NEGATIVE = (46, 125, 80), (190, 60, 50)  # towards chosen, towards rejected


def coloured_tokens(
    tokens: Sequence[str], a: Tensor, selection: Selection, marks: Mapping[int, str], *, hidden: Set[int] = frozenset()
) -> Text:
    """A prompt whose tokens are coloured by score: green toward chosen, red toward rejected, stronger is deeper.

    Selected tokens are underlined; marks (token index -> word) are put behind their tokens in brackets; each run of
    hidden tokens is printed as three dots.
    """
    strongest = float(a.abs().max()) or 1.0
    text = Text()
    for j, token in enumerate(tokens):
        if j in hidden:
            text.append("" if j - 1 in hidden else "... ")
            continue
        score = float(a[j]) / strongest
        red, green, blue = (round(255 + (c - 255) * abs(score)) for c in (POSITIVE if score > 0 else NEGATIVE))
        style = f"{'rgb(255,255,255)' if abs(score) > 0.6 else 'rgb(20,20,20)'} on rgb({red},{green},{blue})"
        chosen = j in selection.pos or j in selection.neg
        text.append(_visible(token), style=f"underline {style}" if chosen else style)
        if j in marks:
            text.append(f"[{marks[j]}]", style="bold")
        text.append(" ")
    return text


def named_tokens(encoded: Encoded) -> tuple[str, ...]:
    """Tokens for people: an image token is called by its place, "whole(3,5)" for row 3 and column 5 of that view."""
    patches = getattr(encoded, "patches", [None] * len(encoded.tokens))
    return tuple(
        f"{patch.view.replace(' ', '')}({patch.row},{patch.column})" if patch else token
        for token, patch in zip(encoded.tokens, patches, strict=True)
    )


def strongest_tokens(tokens: Sequence[str], a: Tensor, selection: Selection) -> str:
    """The selected tokens and their scores in words, so that nothing is said by colour alone."""

    def words(indices: Sequence[int]) -> str:
        return ", ".join(f"{_named(tokens[j])} {float(a[j]):+.2f}" for j in indices) or "none"

    return f"toward rejected: {words(selection.neg)}\ntoward chosen:   {words(selection.pos)}"


def _visible(token: str) -> str:
    """A token without the white space around it; what cannot be seen, or moves the cursor, is written out."""
    return printable(token.strip() or token)


def _named(token: str) -> str:
    return _visible(token) if token.strip() else f"'{_visible(token)}'"
