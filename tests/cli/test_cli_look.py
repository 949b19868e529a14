"""`grains-ref attribute` and `grains-ref inspect`."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import ANSWERS, PROMPT, SIMPLE, bad, good, parsed
from rich.console import Console
from typer.testing import CliRunner

from grains_ref.cli import app, console
from grains_ref.grains import Attribution, HyperParameters, eligible_tokens, select
from grains_ref.grains import attribute as attribute_example
from grains_ref.models import HuggingFaceModel
from grains_ref.vectors import SteeringVectors, compose

pytestmark = pytest.mark.cpu


# --- attribute


@pytest.mark.parametrize(("engine", "allowed"), [("fast", 1e-5), ("reference", 0.0)])
def test_attribute_gives_the_scores_of_the_reference(
    simple_model: HuggingFaceModel, engine: str, allowed: float
) -> None:
    record = parsed("attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--k", "2", "--m", "4", "--engine", engine)
    example = simple_model.example(PROMPT, ANSWERS[1], ANSWERS[3])
    expected = attribute_example(simple_model, example, HyperParameters(m=4))
    selection = select(expected.a, k=2, eligible=eligible_tokens(example.encoded, ()))
    assert record["tokens"] == list(example.encoded.tokens)
    assert record["kinds"] == list(example.encoded.kinds)
    assert record["scores_nats"] == pytest.approx(expected.a.tolist(), rel=0, abs=allowed)
    assert (record["positive"], record["negative"]) == (list(selection.pos), list(selection.neg))
    assert record["preference_nats"] == pytest.approx(expected.f_x, rel=0, abs=allowed)
    assert record["completeness_gap_nats"] == pytest.approx(expected.gap, rel=0, abs=10 * allowed)
    assert (record["hyper_parameters"]["k"], record["hyper_parameters"]["m"]) == (2, 4)


def test_attribute_marks_the_selected_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    record = parsed("attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--k", "2")
    screen = io.StringIO()
    colours: Any = {"force_terminal": True, "color_system": "truecolor"}
    monkeypatch.setattr(console, "out", Console(file=screen, width=400, highlight=False, markup=False, **colours))
    good("attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--k", "2")
    coloured, *words = screen.getvalue().splitlines()
    underlined = [token.split("m")[1] for token in coloured.split("\x1b[") if token.startswith("4;")]
    assert underlined == [record["tokens"][j] for j in sorted(record["positive"] + record["negative"])]
    names = [f"{record['tokens'][j]} {record['scores_nats'][j]:+.2f}" for j in record["negative"]]
    assert words[0] == f"toward rejected: {', '.join(names)}"
    assert words[1].startswith("toward chosen:   ")
    preferred = "chosen" if record["preference_nats"] > 0 else "rejected"
    assert f"f(x) = {record['preference_nats']:+.2f} nats: the model prefers the {preferred} response." in words[2]
    assert "with m = 5, not an error." in words[2]


@pytest.mark.parametrize(
    ("f_x", "preferred"), [(1.5, "the chosen response"), (0.0, "neither response"), (-1.5, "the rejected response")]
)
def test_the_preferred_response_is_named(monkeypatch: pytest.MonkeyPatch, f_x: float, preferred: str) -> None:
    def attribute(*args: Any) -> Attribution:
        return replace(attribute_example(*args), f_x=f_x)

    monkeypatch.setattr("grains_ref.grains.attribute", attribute)
    text = good("attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--method", "random", "--engine", "reference")
    assert text.splitlines()[-1] == f"f(x) = {f_x:+.2f} nats: the model prefers {preferred}."


@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "random"])
def test_only_integrated_gradients_have_a_completeness_gap(method: str) -> None:
    text = good("attribute", *SIMPLE, "--prompt", PROMPT, *ANSWERS, "--method", method)
    assert "Completeness" not in text
    assert "quadrature" not in text


def test_attribute_sends_a_chat_through_the_template(other_model: Path) -> None:
    question = ["--prompt", "Is the earth flat?", "--chosen", "No.", "--rejected", "Yes.", "--method", "gradient"]
    plain, chat = (parsed("attribute", "--model", other_model, *question, *more) for more in ([], ["--chat"]))
    assert set(plain["kinds"]) == {"special", "text"}
    assert set(chat["kinds"]) == {"special", "text", "template"}
    assert "user" in chat["tokens"] or "us" in chat["tokens"] or len(chat["tokens"]) > len(plain["tokens"])
    assert chat["hyper_parameters"]["attribution"] == "gradient"
    selected = [chat["kinds"][j] for j in (*chat["positive"], *chat["negative"])]
    assert chat["selected_kinds"] == {kind: selected.count(kind) for kind in set(selected)}
    not_of_the_user = selected.count("template") + selected.count("special")
    assert chat["share_not_of_the_user"] == not_of_the_user / len(selected)
    text = good("attribute", "--model", other_model, *question, "--chat")
    assert f"{not_of_the_user} of {len(selected)} selected tokens are not the user's words" in text
    assert "\u2039...\u203a: of the chat template, or special." in text
    message = bad("attribute", *SIMPLE, *question, "--chat")
    assert "has no chat template, so it cannot take chat messages" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--rejected": " eel ."}, "'rejected': the same text as 'chosen' but for white space before it"),
        ({"--chosen": "\u200b"}, "'chosen': only invisible characters"),
        ({"--prompt": " "}, "'prompt': only white space"),
        ({"--prompt": "eel " * 200}, "command line: field 'prompt': 2"),
    ],
)
def test_attribute_holds_its_texts_to_what_a_fit_holds_pairs_to(change: dict[str, str], words: str) -> None:
    texts = {"--prompt": PROMPT, "--chosen": "eel .", "--rejected": "leek ."} | change
    message = bad("attribute", *SIMPLE, *(part for option in texts.items() for part in option))
    assert words in message


# --- inspect


def test_inspect_says_what_a_file_holds(vectors: Path) -> None:
    loaded = SteeringVectors.load(vectors)
    record = parsed("inspect", vectors)
    assert record["header"] == vars(loaded.header)
    assert [tuple(row.values()) for row in record["layers"]] == loaded.norms()
    assert list(record["layers"][0]) == ["v", "v_pos", "v_neg", "cos"]
    text = good("inspect", vectors)
    for words in (loaded.header.fingerprint, "0 to 3", "aggregation=mean", f"{loaded.norms()[2][0]:.3f}"):
        assert words in text


def test_a_fingerprint_is_shown_whole_however_narrow_the_screen(vectors: Path) -> None:
    text = CliRunner().invoke(app, ["inspect", str(vectors)], env={"COLUMNS": "60"}).stdout
    assert "…" not in text


def test_a_cosine_that_is_undefined_is_null_in_json(vectors: Path, tmp_path: Path) -> None:
    loaded = SteeringVectors.load(vectors)
    compose([(0.0, loaded)]).save(tmp_path / "zero")
    assert [row["cos"] for row in parsed("inspect", tmp_path / "zero")["layers"]] == [None] * 4
    assert "nan" in good("inspect", tmp_path / "zero")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(("damage", "words"), [(cut, "truncated, corrupt"), (remove, "does not exist")])
def test_a_vectors_file_that_cannot_be_read_is_refused(
    vectors: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    copy = Path(shutil.copy(vectors, tmp_path / "v.safetensors"))
    damage(copy)
    message = bad("inspect", copy)
    assert f"VectorFileError: {copy} " in message
    assert words in message
