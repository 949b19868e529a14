"""Examples as a report packs them: scores, signs, selections and pictures as they were given."""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from typing import Any

import pytest
from PIL import Image
from report_examples import HOSTILE, attributed, hostile, many, with_picture

from grains_ref.grains import Attribution, Encoded, Selection
from grains_ref.report.attributions import STEPS, Attributed, Attributions
from grains_ref.report.page import Report

pytestmark = pytest.mark.cpu


def packed(*examples: Attributed) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The data of a page, and its examples unpacked."""
    html = Report("test", [Attributions(examples)]).html()
    (text,) = re.findall(r'<script type="application/json" class="examples-data">(.*?)</script>', html, re.DOTALL)
    data = json.loads(text)
    return data, [unpacked(one) for one in data["examples"]]


def unpacked(example: str) -> dict[str, Any]:
    """What page.js reads."""
    content = zlib.decompress(base64.b64decode(example))
    n = int.from_bytes(content[:4], "little")
    low, middle, high, score_low, score_high, kinds = (content[4 + i * n : 4 + (i + 1) * n] for i in range(6))
    return json.loads(content[4 + 6 * n :]) | {
        "ids": [a + 256 * b + 65536 * c for a, b, c in zip(low, middle, high, strict=True)],
        "a": [a + 256 * b - STEPS for a, b in zip(score_low, score_high, strict=True)],
        "kinds": list(kinds),
    }


def test_scores_keep_their_sign_and_size() -> None:
    example = attributed()
    _, (content,) = packed(example)
    values = [steps * content["scale"] for steps in content["a"]]
    assert values == pytest.approx(example.a, abs=0.51 * max(map(abs, example.a)) / STEPS)
    assert max(map(abs, content["a"])) == STEPS


def test_the_selected_tokens_of_each_sign_stay_apart() -> None:
    _, (content,) = packed(attributed())
    assert (content["pos"], content["neg"]) == ([1, 2], [3, 4])


def test_tokens_and_kinds_are_found_again_by_their_numbers() -> None:
    example = attributed()
    data, (first, second) = packed(example, attributed(tokens=["?", *example.tokens[1:]]))
    assert [data["tokens"][i] for i in first["ids"]] == example.tokens
    assert [data["tokens"][i] for i in second["ids"]] == ["?", *example.tokens[1:]]
    assert [data["kinds"][i] for i in first["kinds"]] == example.kinds
    assert len(data["tokens"]) == len(set(data["tokens"]))


def test_the_record_of_an_example_gives_it_again() -> None:
    example = with_picture()
    record = json.loads(json.dumps(example.record()))
    again = Attributed.from_record(record, example.picture)
    assert again.record() == example.record()
    assert packed(again)[1] == packed(example)[1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kinds": ["text"]}, "1 kinds for 6 tokens"),
        ({"a": [0.0] * 5}, "5 scores for 6 tokens"),
        ({"a": [float("nan")] * 6}, "not finite"),
        ({"pos": [6]}, "token 6 is selected"),
        ({"neg": [-1]}, "token -1 is selected"),
        ({"marks": {9: "R"}}, "token 9 is selected or marked"),
    ],
)
def test_an_example_that_cannot_be_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        attributed(**changes)


def test_a_picture_has_its_own_patches_and_pixels() -> None:
    _, contents = packed(with_picture("red"), with_picture("blue", first=-1.0))
    for content, colour in zip(contents, ((255, 0, 0), (0, 0, 255)), strict=True):
        picture = content["picture"]
        (_, pixels) = picture["src"].split("base64,")
        assert Image.open(io.BytesIO(base64.b64decode(pixels))).getpixel((5, 5)) == colour
        assert [patch[0] for patch in picture["patches"]] == [0, 1, 2, 3]
        assert picture["patches"][1] == [1, "whole", 0, 1, 20.0, 0.0, 40.0, 20.0]


def test_a_large_picture_is_made_smaller_and_its_boxes_are_not() -> None:
    example = with_picture()
    large = Attributed.from_record(example.record(), Image.new("RGB", (2000, 1000)))
    _, (content,) = packed(large)
    _, pixels = content["picture"]["src"].split("base64,")
    assert Image.open(io.BytesIO(base64.b64decode(pixels))).size == (640, 320)
    assert (content["picture"]["width"], content["picture"]["height"]) == (2000, 1000)


def test_completeness_says_what_the_scores_account_for() -> None:
    example = attributed()
    (heading,) = Attributions([example]).context()["headings"]
    assert heading.total == pytest.approx(sum(example.a))
    assert heading.change == pytest.approx(sum(example.a) + 0.75)
    assert heading.bar is None  # -0.3125 of 0.4375 is no share
    (whole,) = Attributions([attributed(a=[0.5, 0.25, 0, 0, 0, 0], gap=0.25)]).context()["headings"]
    assert whole.bar == pytest.approx(75)
    (of_gradient,) = Attributions([attributed(gap=None)]).context()["headings"]
    assert (of_gradient.change, of_gradient.bar) == (None, None)


def test_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import grains_ref.report.attributions as attributions

    monkeypatch.setattr(attributions, "MOST_BYTES", 5000)
    html = Report("test", [Attributions([attributed()] * 9)]).html()
    assert re.search(r"[1-8] more examples are not shown", html)


def test_no_hostile_text_is_markup_or_leaves_its_script() -> None:
    html = Report(HOSTILE[0], [Attributions([hostile()], marks=HOSTILE[1], title=HOSTILE[3])]).html()
    assert html.count("<script") == 2  # the data and the page's own
    assert "stolen" in html
    assert "<img" not in html
    assert "<b>bold" not in html
    assert not re.search("[\u202a-\u202e\u2028\u2029\x00\x07\x1b\ud800]", html)
    html.encode()
    _, (content,) = packed(hostile())
    assert content["chosen"] == HOSTILE[0]


def test_the_stages_results_are_taken_as_they_are() -> None:
    import torch

    encoded = Encoded(torch.arange(3), torch.zeros(3, 2), ("a", "b", "c"), ("special", "text", "text"), replay=None)
    scores = torch.tensor([0.5, -1.0, 0.25])
    attribution = Attribution(torch.zeros(3, 2), scores, f_x=2.0, f_baseline=1.0)
    selection = Selection(pos=(0,), neg=(1,))
    made = Attributed.of("p", "c", "r", encoded=encoded, attribution=attribution, selection=selection)
    assert (list(made.tokens), made.a, made.pos, made.neg) == (["a", "b", "c"], [0.5, -1.0, 0.25], (0,), (1,))
    assert (made.f_x, made.change) == (2.0, pytest.approx(1.0))


def test_more_words_than_two_bytes_count_are_kept_apart() -> None:
    words = [f" {i}" for i in range(70_000)]
    example = attributed(tokens=words, kinds=["text"] * 70_000, a=[0.0] * 70_000)
    data, (content,) = packed(example)
    assert [data["tokens"][i] for i in content["ids"]] == words


@pytest.mark.thorough
def test_five_hundred_long_prompts_stay_under_five_megabytes() -> None:
    html = Report("test", [Attributions(many(500, 2000))]).html()
    assert len(html.encode()) < 5_000_000
    assert "more examples are not shown" not in html
