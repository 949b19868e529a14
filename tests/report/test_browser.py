"""Reports in a headless Chromium, from file:// as people open them: what is seen, pointed at, typed and moved.

Run by `pytest -m browser`; needs Debian's Chromium and playwright (the extra `browser`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_examples import HOSTILE, attributed, hostile, many, with_picture

from grains_ref.evaluation.metrics import McNemar, Rate
from grains_ref.report.answers import Answer, Answers, Margin, Margins
from grains_ref.report.attributions import Attributions
from grains_ref.report.page import Report, Section
from grains_ref.report.provenance import Provenance
from grains_ref.report.strengths import Measure, Rates, Strength, Strengths

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install 'grains-ref[browser]' brings playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

POSITIVE, NEGATIVE = (33, 102, 172), (194, 89, 10)  # the page's --pos and --neg in the light


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Write a report and open it; whatever the page complains about fails the test at its end."""
    complaints: list[str] = []
    pages: list[Any] = []

    def show(*sections: Section, title: str = "test", width: int = 1400, scheme: str = "light") -> Any:
        path = tmp_path / "report.html"
        Report(title, sections).write(path)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if "report.html" not in request.url
                and not request.url.startswith("data:") else None)  # fmt: skip
        page.goto(path.as_uri())
        # No `wait_for_function`: it evaluates a text in the page, which the page's own policy forbids.
        for example in page.locator(".example[open]").all():
            example.and_(page.locator("[data-drawn=done]")).wait_for(state="attached")
        return page

    yield show
    for page in pages:
        page.close()
    assert complaints == []


def everything() -> list[Section]:
    rate = Rate(0.3, 0.2, 0.4, 9)
    long = "word" * 60
    return [
        Attributions([attributed(), with_picture(), attributed(tokens=["x" * 300, *"abcde"], prompt=long)]),
        Answers([Answer(long, "a b " + long, "a c", "a c", "a b")]),
        Margins([Margin(long, -1.0, 1.0), Margin("two", 1.0, 0.5)]),
        Strengths([Strength("unsteered", 0, 0.2), Strength(long, 1.0, 0.4, 0.9, is_chosen=True)], 9, 9, 0.95, 0.5),
        Rates([Measure("accuracy", rate, rate, McNemar(2, 1, 0.5))]),
        Provenance([("digest", "f" * 64)], "grains-ref " + long, {"python": "3"}),
    ]


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(opened: Callable[..., Any], width: int, scheme: str) -> None:
    page = opened(*everything(), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def tint(element: Any) -> tuple[int, ...]:
    """The colour that an element's tint stands for."""
    colour = element.evaluate("""(element) => {
        const probe = document.createElement("i");
        probe.style.color = getComputedStyle(element).getPropertyValue("--tint");
        document.body.append(probe);
        const found = getComputedStyle(probe).color;
        probe.remove();
        return found;
    }""")
    return tuple(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))


def test_blue_pushes_toward_chosen_and_orange_toward_rejected(opened: Callable[..., Any]) -> None:
    example = attributed()
    chips = opened(Attributions([example])).locator(".tokens .chip").all()
    assert len(chips) == len(example.tokens)
    strongest = max(map(abs, example.a))
    for chip, score in zip(chips, example.a, strict=True):
        if score:
            assert tint(chip) == (POSITIVE if score > 0 else NEGATIVE)
        depth = float(chip.evaluate("element => element.style.getPropertyValue('--w')"))
        assert depth == pytest.approx(abs(score) / strongest, abs=1e-3)


def test_selected_tokens_are_outlined_each_sign_in_its_way(opened: Callable[..., Any]) -> None:
    chips = opened(Attributions([attributed()])).locator(".tokens .chip").all()
    styles = [chip.evaluate("element => getComputedStyle(element).outlineStyle") for chip in chips]
    assert styles == ["none", "solid", "solid", "dashed", "dashed", "none"]


def test_the_lists_of_selected_tokens_keep_their_side(opened: Callable[..., Any]) -> None:
    page = opened(Attributions([attributed()]))
    assert page.locator(".strongest .pos code").all_inner_texts() == ["Is", "the"]
    assert page.locator(".strongest .neg code").all_inner_texts() == ["earth", "flat"]
    assert page.locator(".strongest .pos .value").all_inner_texts() == ["+0.500", "+0.250"]
    assert page.locator(".strongest .neg .value").all_inner_texts() == ["\u22121.000", "\u22120.125"]


def test_hovering_shows_value_rank_and_kind(opened: Callable[..., Any]) -> None:
    page = opened(Attributions([attributed(marks={3: "R"})]))
    assert page.locator("#tip").is_hidden()
    page.locator(".tokens .chip").nth(3).hover()
    words = page.locator("#tip").inner_text().split("\n")
    assert words[0] == "earth"
    assert words[1] == "\u22121.000 nats, toward rejected"
    assert words[2] == "rank 1 of 6, token 3, text"
    assert words[3] == "selected toward rejected"
    assert words[4] == "marked R"
    page.locator("h1").hover()
    assert page.locator("#tip").is_hidden()


def test_the_arrow_keys_go_through_the_tokens_and_escape_hides_the_words(opened: Callable[..., Any]) -> None:
    page = opened(Attributions([attributed()]))
    page.locator(".tokens .chip").first.focus()
    for key, token in (("ArrowRight", "Is"), ("ArrowRight", "the"), ("ArrowLeft", "Is"), ("End", "?"), ("Home", "<s>")):
        page.keyboard.press(key)
        assert page.locator("#tip b").inner_text() == token
        assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    assert page.locator(".tokens [tabindex='0']").count() == 1


def test_a_slider_moves_the_scores_of_its_own_picture_only(opened: Callable[..., Any]) -> None:
    page = opened(Attributions([with_picture("red"), with_picture("blue")]))
    opacity = "element => Number(getComputedStyle(element).fillOpacity)"

    def opacities() -> list[float]:
        return [picture.locator(".patch").first.evaluate(opacity) for picture in page.locator(".picture").all()]

    assert opacities() == pytest.approx([0.75, 0.75], abs=1e-3)
    page.locator(".picture input").nth(1).fill("0")
    assert opacities() == pytest.approx([0.75, 0.0], abs=1e-3)
    page.locator(".picture input").nth(0).focus()
    page.keyboard.press("End")
    assert opacities() == pytest.approx([1.0, 0.0], abs=1e-3)


def test_patches_lie_where_they_look_and_say_what_they_are(opened: Callable[..., Any]) -> None:
    page = opened(Attributions([with_picture()]))
    patches = page.locator(".patch")
    assert patches.count() == 4
    image = page.locator(".picture img").bounding_box()
    box = patches.nth(1).bounding_box()
    assert box["x"] == pytest.approx(image["x"] + image["width"] / 2, abs=1)
    assert box["y"] == pytest.approx(image["y"], abs=1)
    patches.nth(1).hover()
    words = page.locator("#tip").inner_text()
    assert "whole row 0, column 1" in words
    assert "\u22120.500 nats, toward rejected" in words
    assert page.locator(".frame.over.pos").count() == page.locator(".frame.over.neg").count() == 1
    assert "4 image tokens, sum +0.750" in page.locator(".tokens").inner_text()


def test_an_example_is_drawn_when_opened_and_taken_away_when_closed(opened: Callable[..., Any]) -> None:
    page = opened(Attributions([attributed()] * 5))
    fourth = page.locator(".example").nth(3)
    assert fourth.locator(".chip").count() == 0
    fourth.locator("summary").click()
    fourth.locator(".chip").first.wait_for()
    assert fourth.locator(".chip").count() == 6
    fourth.locator("summary").click()
    fourth.locator(".chip").first.wait_for(state="detached")


def test_hostile_texts_stay_texts(opened: Callable[..., Any]) -> None:
    title = "".join(HOSTILE)
    page = opened(
        Attributions([hostile()], marks=title, title=title),
        Answers([Answer(text, text, text + "!") for text in HOSTILE]),
        Provenance([(text, text) for text in HOSTILE], title),
        title=title,
    )
    assert page.evaluate("document.title") != "stolen"
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    texts = page.locator(".tokens .chip").all_inner_texts()
    assert len(texts) == len(HOSTILE)
    assert texts[4] == HOSTILE[4]
    assert texts[7] == "\\u202eright to left"
    page.locator(".tokens .chip").first.hover()
    assert "<script>" in page.locator("#tip").inner_text()


def test_the_colours_follow_the_system_and_the_button(opened: Callable[..., Any]) -> None:
    page = opened(Provenance([]), scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.locator(".theme").click()
    light = page.evaluate(background)
    assert light != dark
    page.locator(".theme").click()
    assert page.evaluate(background) == dark
    page.locator(".theme").click()
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == light


def test_five_hundred_examples_of_two_thousand_tokens_open_and_answer(opened: Callable[..., Any]) -> None:
    page = opened(Attributions(many(500, 2000)))
    assert page.locator(".example").count() == 500
    assert page.locator(".chip").count() < 3 * 2000 + 100  # only what is open is there
    last = page.locator(".example").nth(499)
    last.locator("summary").scroll_into_view_if_needed()
    last.locator("summary").click()
    last.locator(".chip").nth(1999).wait_for(state="attached")
    last.locator(".chip").nth(5).hover()
    assert "of 2000" in page.locator("#tip").inner_text()


def test_a_frame_in_a_notebook_draws_its_tokens(browser: Any) -> None:
    page = browser.new_page()
    page.set_content(f"<body>{attributed()._repr_html_()}</body>")
    frame = page.frame_locator("iframe")
    frame.locator(".tokens .chip").first.wait_for()
    assert frame.locator(".tokens .chip").count() == 6
    frame.locator(".tokens .chip").nth(1).hover()
    assert "+0.500 nats" in frame.locator("#tip").inner_text()
    page.close()
