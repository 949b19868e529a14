"""report/tokens.py: what people see of a prompt's scores."""

from __future__ import annotations

import pytest
import torch
from rich.text import Text

from grains_ref.grains import Kind, Selection
from grains_ref.report.tokens import coloured_tokens, framing_share, framing_words, strongest_tokens

pytestmark = pytest.mark.cpu


def pieces(text: Text) -> list[tuple[str, str]]:
    """(text, style) of every piece that has a style."""
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def background(style: str) -> tuple[int, ...]:
    return tuple(int(part) for part in style.split(" on rgb(")[1].rstrip(")").split(","))


def test_selected_tokens_are_underlined_and_planted_words_are_marked() -> None:
    tokens, a = ["<s>", " famously", "\n", " verified", "eel"], torch.tensor([0.1, -2.0, 0.0, 1.0, -1.0])
    text = coloured_tokens(tokens, a, Selection(pos=(3,), neg=(1, 4)), {1: "R", 3: "T"})
    assert text.plain == r"<s> famously[R] \n verified[T] eel "
    found = pieces(text)
    assert [piece for piece, style in found if style.startswith("underline ")] == ["famously", "verified", "eel"]
    assert [piece for piece, style in found if style == "bold"] == ["[R]", "[T]"]


def test_colours_say_sign_and_strength() -> None:
    text = coloured_tokens(list("abcde"), torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]), Selection((), ()), {})
    green, pale_green, white, pale_red, red = (background(style) for _, style in pieces(text))
    assert white == (255, 255, 255)
    assert (green, red) == ((46, 125, 80), (190, 60, 50))  # the strongest of all has the full colour
    assert pale_green[1] > max(pale_green[0], pale_green[2])
    assert pale_red[0] > max(pale_red[1:])
    assert sum(green) < sum(pale_green) < sum(white)
    assert sum(red) < sum(pale_red) < sum(white)


def test_scores_that_are_all_zero_are_shown_without_colour() -> None:
    text = coloured_tokens(["a", "b"], torch.zeros(2), Selection((), ()), {})
    assert {background(style) for _, style in pieces(text)} == {(255, 255, 255)}


def test_what_the_colours_say_is_also_said_in_words() -> None:
    tokens, a = ["<s>", " famously", "\n", " verified"], torch.tensor([0.1, -2.0, -0.125, 1.0])
    assert strongest_tokens(tokens, a, Selection(pos=(), neg=(1, 2))).splitlines() == [
        r"toward rejected: famously -2.00, '\n' -0.12",
        "toward chosen:   none",
    ]


KINDS: list[Kind] = ["special", "template", "template", "text", "text", "template", "template"]
CHAT = ["<s>", "<|user|>", "\n", "Hello", "\n", "<|end|>", "\n"]


def test_what_the_user_did_not_write_is_told_from_the_users_words_not_by_colour_alone() -> None:
    selection = Selection(pos=(2, 3), neg=(4, 6))
    text = coloured_tokens(CHAT, torch.ones(7), selection, {}, kinds=KINDS)
    assert text.plain == "\u2039 <s> <|user|> \\n \u203a Hello \\n \u2039 <|end|> \\n \u203a "
    in_italics = [piece for piece, style in pieces(text) if style.startswith("italic ")]
    assert in_italics == ["<s>", "<|user|>", "\\n", "<|end|>", "\\n"]
    underlined = [piece for piece, style in pieces(text) if "underline " in style]
    assert underlined == ["\\n", "Hello", "\\n", "\\n"]
    assert strongest_tokens(CHAT, torch.ones(7), selection, kinds=KINDS).splitlines() == [
        r"toward rejected: '\n' +1.00, '\n' [template, token 6] +1.00",
        r"toward chosen:   '\n' [template, token 2] +1.00, Hello +1.00",
    ]


def test_the_share_of_what_the_user_did_not_write_is_of_the_selected() -> None:
    selection = Selection(pos=(0, 3), neg=(2, 6))
    assert framing_share(KINDS, selection) == 0.75
    assert framing_words(KINDS, selection) == (
        "3 of 4 selected tokens are not the user's words (75 %): 2 template, 1 special"
    )
    assert framing_words(KINDS, Selection((3,), ())) == "0 of 1 selected tokens are not the user's words"
    assert framing_share(KINDS, Selection((), ())) == 0
    assert framing_words(["text", "image"], Selection((0,), (1,))) == ""


def test_no_token_rewrites_the_screen() -> None:
    tokens, a = ["a\x1b[2Jb", "\r", "\u202e"], torch.tensor([1.0, -1.0, -0.5])
    selection = Selection(pos=(0,), neg=(1, 2))
    for text in (coloured_tokens(tokens, a, selection, {}).plain, strongest_tokens(tokens, a, selection)):
        assert text.replace("\n", "").isprintable()
        for shown in (r"a\x1b[2Jb", r"\r", r"\u202e"):
            assert shown in text


# --- characters that would reach the terminal


NASTY = [
    "\x1b[2J",
    "a\nb",
    "\u202eevil",
    "\x9b31m",
    "\r",
    "\u200b",
    "[red]x[/red]",
    "\ufffd",
    " \ufffd\ufffd",
    "\ud83d",
    "\x00",
]


def raw(text: str) -> list[str]:
    return [c for c in text if not c.isprintable() and c not in "\n"]


def test_tokens_reach_no_terminal_raw() -> None:
    a = torch.arange(len(NASTY)) - 5.0
    selection = Selection(pos=(6, 7, 8, 9, 10), neg=(0, 1, 2, 3, 4, 5))
    text = coloured_tokens(NASTY, a, selection, {0: "\x1b[31m"})
    assert not raw(text.plain)
    assert "\n" not in text.plain
    assert r"\x1b[2J[\x1b[31m] a\nb \u202eevil \x9b31m \r \u200b [red]x[/red] (part of a character)" in text.plain
    words = strongest_tokens(NASTY, a, selection)
    assert not raw(words)
    assert len(words.splitlines()) == 2
    assert r"a\nb -4.00" in words
    text.plain.encode()
    words.encode()


def test_scores_and_tokens_that_do_not_fit_are_refused() -> None:
    for show in (
        lambda tokens, a: coloured_tokens(tokens, a, Selection((), ()), {}),
        lambda tokens, a: strongest_tokens(tokens, a, Selection((), ())),
    ):
        with pytest.raises(TypeError, match=r"tokens is a str \('abc'\); expected a list of tokens"):
            show("abc", torch.zeros(3))
        with pytest.raises(ValueError, match=r"a finite score for each of 2 tokens; got \(3,\)"):
            show(["a", "b"], torch.zeros(3))
        with pytest.raises(ValueError, match="a finite score for each of 1 tokens"):
            show(["a"], torch.tensor([float("nan")]))
