"""The sections of a report: what is told of answers, margins, layers, strengths, rates and where all came from."""

from __future__ import annotations

import html as html_parser
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from report_examples import HOSTILE, attributed

from grains_ref.evaluation import SideEffect, SideEffects
from grains_ref.evaluation.metrics import McNemar, Rate, rate
from grains_ref.report.answers import Answer, Answers, Margin, Margins, differences
from grains_ref.report.attributions import Attributions
from grains_ref.report.charts import VARIABLES, Line, lines_chart
from grains_ref.report.layers import Layers
from grains_ref.report.page import Report, Section, environment, nats
from grains_ref.report.prose import Prose
from grains_ref.report.provenance import Provenance, facts_of, masked_command
from grains_ref.report.side_effects import SideEffectsTable
from grains_ref.report.strengths import Comparison, Measure, Method, Rates, Strength, Strengths
from grains_ref.vectors import Header, SteeringVectors

pytestmark = pytest.mark.cpu

SIGNAL = {
    "line": "Signal: none found.",
    "warnings": ["v is not shown to move f at all."],
    "figures": {"verdict": "none"},
    "layers": {"cosine": [0.1, 0.2], "slope": [1.0, 2.0], "halves": [0.3, 0.4], "length": [0.5, 0.25]},
}


def vectors(**changes: Any) -> SteeringVectors:
    """Two layers of width 2."""
    of_header: dict[str, Any] = {
        "dialect": "paper",
        "hyper_parameters": {"k": 3},
        "model_name": "m",
        "fingerprint": "f" * 8,
        "data_digest": "d" * 8,
        "tokens_digest": "t" * 8,
        "n_examples": 4,
        "versions": {"python": "3.11"},
        "diagnostics": {"pos_explained": [0.9, 0.8], "neg_explained": [0.7, 0.6], "pos_cos_mean": [1.0, 1.0]},
        "chat_template": "c" * 8,
    }
    pos, neg = torch.eye(2), torch.zeros(2, 2)
    neg[:, 1] = 1.0
    return SteeringVectors(v=pos - neg, v_pos=pos, v_neg=neg, header=Header(**of_header | changes))


def text_of(section: Section) -> str:
    """What a person reads, in one line."""
    return " ".join(html_parser.unescape(re.sub(r"<[^>]+>", " ", section.body())).split())


def side_effects_table(name: str = "a.jsonl") -> SideEffectsTable:
    """One share that fell, one that may not have moved, and a perplexity that rose."""

    def share(value: float) -> Rate:
        return Rate(value, value - 0.1, value + 0.1, 40)

    effects = (
        SideEffect("multiple choice", name, "higher", "share", share(0.75), share(0.5), share(-0.25), 0.01, 0.03),
        SideEffect("tasks", name, "higher", "share", share(0.8), share(0.85), share(0.05), 0.4, 0.4),
        SideEffect("perplexity", name, "lower", "perplexity", share(12), share(14), share(0.154), 0.02, 0.04),
    )
    return SideEffectsTable(SideEffects(effects, (f"a note on {name}",), (), "refusal rule 1"), how=name)


class Elements(HTMLParser):
    """The elements of a page: tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs if name != "aria-label"}))


def sections() -> list[Section]:
    """One of every kind."""
    third = Rate(0.3, 0.2, 0.4, 9)
    return [
        Attributions([attributed()]),
        Answers([Answer("p", "a b", "a c")]),
        Margins([Margin("one", -1.0, 1.0), Margin("two", 1.0, 0.5)]),
        Layers(vectors(signal=SIGNAL)),
        Strengths([Strength("unsteered", 0.0, 0.2), Strength("k 1", 1.0, 0.4, is_chosen=True)]),
        Rates([Measure("accuracy", third, third, McNemar(2, 1, 0.5))]),
        Comparison([Method("u", third, third, 0.5, 1.0, 0.0), Method("g", third, third, 0.4, 0.9, 0.1)], max_loss=0.5),
        side_effects_table(),
        Provenance([("model", "m")], "grains-ref fit", {"python": "3.11"}),
        Prose("# T\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"),
    ]


# --- side effects


def test_side_effects_say_which_way_each_measure_moved() -> None:
    text = text_of(side_effects_table())
    assert "made 1 worse" not in text
    assert "made 2 worse" in text
    assert "\u221225.0 [\u221235.0, \u221215.0] points" in text
    assert "+0.154 [+0.054, +0.254] nats per token" in text
    assert "75.0 % 65.0 to 85.0" in text
    assert re.findall(r"(worse|better|cannot tell) 0\.\d+ 0\.\d+", text) == ["worse", "cannot tell", "worse"]
    assert "a note on a.jsonl" in text


def test_the_figure_of_side_effects_has_a_panel_for_each_unit_in_the_pages_colours() -> None:
    drawn = side_effects_table().body()
    chart = drawn[drawn.index("<svg") : drawn.index("</svg>")]
    assert "change in points" in chart
    assert "change in nats per token" in chart
    assert "75.0 % \u2192 50.0 %" in chart
    assert "var(--neg)" in chart
    assert not re.search("|".join(VARIABLES), chart)


def test_side_effects_as_a_file_have_colours_of_their_own(tmp_path: Path) -> None:
    table = side_effects_table()
    table.write_figure(tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "#c2590a" in drawn
    assert "var(" not in drawn
    assert not re.search("|".join(VARIABLES), drawn)
    table.write_figure(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 940
    with pytest.raises(ValueError, match=r"ends in \.svg or \.png"):
        table.write_figure(tmp_path / "a.pdf")


# --- the page


@pytest.mark.parametrize("section", sections(), ids=lambda section: type(section).__name__)
def test_every_section_shows_itself_in_a_notebook_and_no_chart_shines_on_a_dark_page(section: Section) -> None:
    frame = section._repr_html_()
    assert frame.startswith('<iframe sandbox="allow-scripts"')
    page = html_parser.unescape(re.findall(r'srcdoc="([^"]*)"', frame)[0])
    assert page.startswith("<!doctype html>")
    assert f'<h2 id="{section.anchor}-title">{section.title}</h2>' in page
    for chart in re.findall(r"<svg class=\"chart\".*?</svg>", page, re.DOTALL):
        assert not re.search(r"fill: ?(#ffffff|white)", chart)


def test_a_page_fetches_nothing_and_runs_one_script() -> None:
    page = Report("all", sections()).html()
    elements = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*', elements) == []
    assert "@import" not in page
    assert "url(http" not in page
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0]
    assert html_parser.unescape(policy).startswith("default-src 'none'; img-src data:;")
    assert len(re.findall(r"<script>", page)) == 1


def test_two_sections_of_one_title_have_two_anchors() -> None:
    page = Report("two", [Provenance([], "a"), Provenance([], "b")]).html()
    anchors = re.findall(r'<section id="([^"]*)"', page)
    assert anchors == ["provenance", "provenance-2"]
    assert 'href="#provenance-2"' in page


def test_templates_escape_and_refuse_unknown_names() -> None:
    made = environment().from_string("{{ text }}")
    assert made.render(text="<b>\u202e\ud800") == "&lt;b&gt;\\u202e\\ud800"
    with pytest.raises(Exception, match="undefined"):
        made.render()


def test_hostile_texts_are_shown_and_not_obeyed_by_any_section() -> None:
    third = Rate(0.3, 0.2, 0.4, 9)
    of_signal = SIGNAL | {"line": HOSTILE[0], "warnings": HOSTILE}
    every_title = "".join(HOSTILE)
    hostile = [
        side_effects_table(every_title),
        Answers([Answer(text, text, text + " x", text, text) for text in HOSTILE], how=every_title, title=every_title),
        Margins([Margin(text, 0.0, 1.0) for text in HOSTILE], how=every_title),
        Layers(vectors(signal=of_signal), title=HOSTILE[1]),
        Strengths([Strength(text, 1.0, 0.5) for text in HOSTILE], limit_words=every_title),
        Rates([Measure(text, third) for text in HOSTILE], how=every_title),
        Comparison([Method(text, third, third, 0, 1, 0, text) for text in HOSTILE], max_loss=0.5, how=every_title),
        Provenance([(text, text) for text in HOSTILE], every_title, {text: text for text in HOSTILE}),
        Prose("".join(f"{text}\n\n[{text}](javascript:alert)\n\n" for text in HOSTILE)),
    ]
    page = Report(every_title, hostile, lead=every_title).html()
    page.encode()
    assert page.count("stolen") > 50
    elements = Elements()
    elements.feed(page)
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert [(tag, name) for tag, attributes in elements.found for name in attributes if name.startswith("on")] == []
    assert "img" not in {tag for tag, _ in elements.found}
    assert {name for _, attributes in elements.found for name in attributes.values() if "javascript:" in name} == set()
    assert "<b>bold" not in page
    assert not re.search("[\u202a-\u202e\u2028\u2029\x00\x07\x1b\ud800]", page)


# --- answers and margins


def test_the_words_that_differ_are_marked_and_no_others() -> None:
    left, right = differences("the dish is barley .", "the dish is green eel .")
    assert "".join(piece.text for piece in left) == "the dish is barley ."
    assert "".join(piece.text for piece in right) == "the dish is green eel ."
    assert [piece.text for piece in left if piece.is_changed] == ["barley"]
    assert "".join(piece.text for piece in right if piece.is_changed) == "green eel"


def test_an_answer_is_called_what_it_begins_with() -> None:
    answer = Answer(
        "p", base="It is  flat.", steered="It is round. More", chosen="It is round.", rejected="It is flat."
    )
    (row,) = Answers([answer]).context()["rows"]
    assert (row.base_is, row.steered_is) == ("rejected", "chosen")
    body = Answers([answer]).body()
    assert body.index(">rejected<") < body.index(">chosen<")


def test_margins_count_what_crosses_zero() -> None:
    context = Margins([Margin("a", -1, 1), Margin("b", 1, -1), Margin("c", -2, 3), Margin("d", 1, 2)]).context()
    assert (context["gained"], context["lost"]) == (2, 1)
    assert (context["right_before"], context["right_after"]) == (2, 3)
    assert context["mean_change"] == pytest.approx(1.5)
    with pytest.raises(ValueError, match="not finite"):
        Margins([Margin("a", 0.0, float("nan"))])


def test_of_many_pairs_those_that_moved_most_are_listed() -> None:
    rows = Margins([Margin(str(i), 0.0, float(i)) for i in range(500)]).context()["rows"]
    assert [rows[0].name, rows[99].name, rows[100].name, rows[-1].name] == ["499", "400", "99", "0"]


# --- layers


def test_the_signal_is_told_with_its_warning() -> None:
    body = Layers(vectors(signal=SIGNAL)).body()
    assert 'class="callout bad"' in body
    assert "Signal: none found." in body
    assert "v is not shown to move f at all." in body
    toward = SIGNAL | {"warnings": [], "figures": {"verdict": "toward"}}
    assert 'class="callout good"' in Layers(vectors(signal=toward)).body()
    assert "was not measured" in text_of(Layers(vectors()))


def test_the_size_of_the_edit_is_at_the_strength_in_use() -> None:
    def sizes(layers: Layers) -> list[float]:
        (column,) = [column for column in layers.columns() if "state" in column.name]
        return list(column.values)

    stored = vectors(signal=SIGNAL, choice={"lam": 4.0, "layers": [0, 1]})
    assert sizes(Layers(stored)) == [2.0, 1.0]
    assert sizes(Layers(stored, lam=-2.0)) == [1.0, 0.5]
    assert sizes(Layers(vectors(signal=SIGNAL))) == [0.5, 0.25]


def test_a_layer_without_direction_has_a_gap_and_no_error() -> None:
    nothing = torch.zeros(2, 2)
    section = Layers(replace(vectors(), v=nothing, v_pos=nothing, v_neg=nothing))
    assert "nan" in text_of(section)


# --- strengths, rates, comparison


def test_the_limit_is_the_unsteered_models_accuracy_less_what_may_be_lost() -> None:
    tried = [
        Strength("unsteered", 0, 0.1, 0.98),
        Strength("k 1", 1.0, 0.5, 0.9, True),
        Strength("k 1", 0.5, 0.3, 0.98, is_chosen=True),
    ]
    section = Strengths(tried, n_dev=40, n_tasks=50, unsteered_tasks=0.98, max_loss=2)
    assert section.limit == pytest.approx(0.96)
    text = text_of(section)
    assert "its limit is 96.0 %" in text
    assert "at most 90.0 %" in text
    assert "Chosen: lam 0.5 , k 1, with 30.0 % on dev against 10.0 % unsteered (40 pairs)" in text
    assert section.body().count("<svg") == 3
    assert "var(--limit)" in section.body()
    without = Strengths(tried[:1])
    assert without.limit is None
    assert "No tasks were given" in text_of(without)


def test_a_rate_has_its_wilson_interval() -> None:
    section = Strengths([Strength("k", 1.0, 0.5)], n_dev=40)
    expected = rate([True] * 20 + [False] * 20)
    assert section.interval(0.5, 40) == pytest.approx((expected.low, expected.high))
    assert section.interval(0.5, 0) is None


def test_both_rates_of_a_measure_keep_their_column() -> None:
    measure = Measure("accuracy", Rate(0.1, 0.0, 0.2, 9), Rate(0.6, 0.5, 0.7, 9), McNemar(5, 2, 0.01))
    assert "accuracy 10.0 % 0.0 to 20.0 60.0 % 50.0 to 70.0 5 2 0.01" in text_of(Rates([measure]))


def test_charts_take_the_pages_colours() -> None:
    drawn = lines_chart("t", [Line("a", [0, 1], [0, 1], "#040404")], x="x", y="y")
    assert "var(--pos)" in drawn
    assert not [colour for colour in VARIABLES if colour in drawn]
    assert 'role="img" aria-label="t. y over x: a"' in drawn
    assert "<style" not in drawn
    assert "<metadata" not in drawn


# --- provenance


def test_the_command_has_no_secret_in_it() -> None:
    environment_ = {"GRAINS_JUDGE_API_KEY": "sk-abcdefghijklmnop", "HOME": "/home/someone", "SHORT_KEY": ""}
    command = ["grains-ref", "reproduce", "--judge-url", "https://me:pw@host:1/v1?token=hunter22&a=bb#c", "--x"]
    shown = masked_command([*command, "key=sk-abcdefghijklmnop", "/home/someone/a b"], environment_)
    for secret in ("hunter22", "abcdefghijklmnop", "me:pw", "=bb"):
        assert secret not in shown
    assert "host:1/v1?token=***" in shown
    assert shown.endswith("'/home/someone/a b'")
    assert masked_command(["grains-ref", "--url", "http://h/v1"], {}) == "grains-ref --url http://h/v1"


def test_the_header_says_where_vectors_come_from() -> None:
    facts = dict(facts_of(vectors()))
    assert facts["model fingerprint"] == "f" * 8
    assert facts["data digest"] == "d" * 8
    assert facts["chat template"] == "c" * 8
    assert facts["hyper-parameters"] == "k=3"


# --- prose


def test_markdown_becomes_tables_and_figures_and_nothing_else() -> None:
    text = "### Table 1. It\n\n| a | b |\n|---|---|\n| <i>1</i> | 2 |\n\n![figure 3](figure-3.png)\n\n![x](https://h/x.png)\n"
    text += "\n[a](https://h/a) <https://h/b>\n"
    body = Prose(text, {"figure-3.png": b"<svg/>"}).body()
    assert "<h3>Table 1. It</h3>" in body
    assert "<td>&lt;i&gt;1&lt;/i&gt;</td>" in body
    assert body.count("<img") == 1
    assert 'src="data:image/svg+xml;base64,PHN2Zy8+"' in body
    assert "href" not in body
    assert 'src="https' not in body


def test_nats_have_a_sign_and_enough_places() -> None:
    assert [nats(value) for value in (1.234, -0.5, 0.0123, 0.0)] == ["+1.23", "\u22120.50", "+0.012", "+0.00"]
