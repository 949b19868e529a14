"""Tokens for people: coloured by their scores, called by name, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from rich.text import Text
from torch import Tensor

from grains_ref.files import check_listed, printable
from grains_ref.grains import Encoded, Kind, Selection

PART = "(part of a character)"
OPENING, CLOSING = "\u2039", "\u203a"  # around what the user did not write
FRAMING: tuple[Kind, ...] = ("template", "special")
POSITIVE, NEGATIVE = (46, 125, 80), (190, 60, 50)  # towards chosen, towards rejected


def coloured_tokens(
    tokens: Sequence[str],
    a: Tensor,
    selection: Selection,
    marks: Mapping[int, str],
    *,
    hidden: Set[int] = frozenset(),
    kinds: Sequence[Kind] = (),
) -> Text:
    """A prompt whose tokens are coloured by score: green toward chosen, red toward rejected, stronger is deeper.

    Selected tokens are underlined; marks (token index -> word) are put behind their tokens in brackets; each run of
    hidden tokens is printed as three dots.  With the tokens' kinds, what is not the user's (of the chat template, or
    special) is in italics, each run of it between angle quotes.

    Raises:
        TypeError: the tokens are one text.
        ValueError: another number of scores than of tokens, or a score that is not finite.
    """
    _check(tokens, a)
    frame = framing_tokens(kinds)
    strongest = float(a.abs().max()) or 1.0
    text = Text()
    for j, token in enumerate(tokens):
        if j in hidden:
            text.append("" if j - 1 in hidden else "... ")
            continue
        score = float(a[j]) / strongest
        red, green, blue = (round(255 + (c - 255) * abs(score)) for c in (POSITIVE if score > 0 else NEGATIVE))
        style = f"{'rgb(255,255,255)' if abs(score) > 0.6 else 'rgb(20,20,20)'} on rgb({red},{green},{blue})"
        if j in selection.pos or j in selection.neg:
            style = f"underline {style}"
        if j in frame:
            style = f"italic {style}"
            if j - 1 not in frame:
                text.append(f"{OPENING} ")
        text.append(shown_token(token), style=style)
        if j in marks:
            text.append(f"[{printable(marks[j])}]", style="bold")
        text.append(" ")
        if j in frame and j + 1 not in frame:
            text.append(f"{CLOSING} ")
    return text


def framing_tokens(kinds: Sequence[Kind]) -> frozenset[int]:
    """The tokens that the user did not write: those of the chat template, and special ones."""
    return frozenset(j for j, kind in enumerate(kinds) if kind in FRAMING)


def framing_share(kinds: Sequence[Kind], selection: Selection) -> float:
    """Their share among the selected tokens; 0 where nothing was selected."""
    selected = (*selection.pos, *selection.neg)
    return len(framing_tokens(kinds).intersection(selected)) / max(len(selected), 1)


def framing_words(kinds: Sequence[Kind], selection: Selection) -> str:
    """How many of the selected tokens the user did not write, in words; "" where the prompt has none of them."""
    frame = framing_tokens(kinds)
    if not frame:
        return ""
    selected = (*selection.pos, *selection.neg)
    inside = [kinds[j] for j in selected if j in frame]
    parts = [f"{inside.count(kind)} {kind}" for kind in FRAMING if inside.count(kind)]
    share = f" ({100 * framing_share(kinds, selection):.0f} %): {', '.join(parts)}" if inside else ""
    return f"{len(inside)} of {len(selected)} selected tokens are not the user's words{share}"


def shown_token(token: str) -> str:
    r"""One token on the screen, without the white space around it: what is not to be seen is written out, as \x1b.

    Convention: the piece of a character that several tokens make together (an emoji, in bytes) is no text by itself;
      decoders give U+FFFD for it, and it is said in words.
    """
    words = token.strip().replace("\ufffd", PART)
    return printable(words or token)


def _quoted_if_blank(token: str) -> str:
    return shown_token(token) if token.strip() else f"'{shown_token(token)}'"


def _check(tokens: Sequence[str], a: Tensor) -> None:
    check_listed("tokens", tokens, "a list of tokens")
    if a.shape != (len(tokens),) or not a.isfinite().all():
        raise ValueError(f"expected a finite score for each of {len(tokens)} tokens; got {tuple(a.shape)}")


def named_tokens(encoded: Encoded) -> tuple[str, ...]:
    """Tokens for people: an image token is called by its place, "whole(3,5)" for row 3 and column 5 of that view.

    Of several pictures the number stands in front, from 1: "2:whole(3,5)".
    """
    patches = getattr(encoded, "patches", [None] * len(encoded.tokens))
    has_several = any(patch and patch.picture for patch in patches)
    names = []
    for token, patch in zip(encoded.tokens, patches, strict=True):
        name = f"{patch.view.replace(' ', '')}({patch.row},{patch.column})" if patch else token
        names.append(f"{patch.picture + 1}:{name}" if patch and has_several else name)
    return tuple(names)


def strongest_tokens(tokens: Sequence[str], a: Tensor, selection: Selection, *, kinds: Sequence[Kind] = ()) -> str:
    r"""The selected tokens and their scores in words, so that nothing is said by colour alone.

    With the tokens' kinds, what is not the user's is called so, with its number in the prompt: a template has the same
    \n many times.
    """
    frame = framing_tokens(kinds)

    def called(j: int) -> str:
        name = _quoted_if_blank(tokens[j])
        return f"{name} [{kinds[j]}, token {j}]" if j in frame else name

    def words(indices: Sequence[int]) -> str:
        return ", ".join(f"{called(j)} {float(a[j]):+.2f}" for j in indices) or "none"

    _check(tokens, a)
    return f"toward rejected: {words(selection.neg)}\ntoward chosen:   {words(selection.pos)}"
