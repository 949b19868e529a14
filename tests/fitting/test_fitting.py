"""fitting.py: a fit that is interrupted loses at most the example in work, and never mixes two fits."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from robustness import interruptions
from shared import first_quick

from grains_ref import fast, grains
from grains_ref.data import PreferencePair, RowError, Where, content_digest
from grains_ref.fast import EngineName
from grains_ref.fitting import FitRecord, checked_examples, resumable_fit, tokens_digest, work_folder
from grains_ref.fitting import resumable as fitting
from grains_ref.fitting.work_folder import WorkFolderError, open_work_folder
from grains_ref.grains import DegenerateShiftsError, HyperParameters, attribute, fit, shift
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_models import random_llama
from grains_ref.tiny_models.worlds import build_world
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu

HP = HyperParameters(k=2, m=2)
PROMPTS = ("The capital of France", "Is the earth flat?", "What do people say about the moon", "Tell me the truth, now")
PAIRS = [
    PreferencePair(f"{i}", prompt, "No, it is round.", "Rome.", where=Where("pairs.jsonl", i + 1))
    for i, prompt in enumerate(PROMPTS)
]


class Interrupted(Exception):
    """What stands for a crash."""


def run(
    model: HuggingFaceModel,
    work: Path,
    *,
    pairs: Sequence[PreferencePair] = PAIRS,
    hp: HyperParameters = HP,
    on_example: Callable[[int], None] = lambda n: None,
    engine: EngineName = "reference",
) -> FitRecord:
    """A fit by the engine that takes one example at a time, so that it can be stopped behind any of them."""
    kept, examples, _ = checked_examples(model, pairs, skip_bad_rows=False)
    with open_work_folder(work) as folder:
        return resumable_fit(model, kept, examples, hp, work=folder, on_example=on_example, engine=engine)


def stop_after(n: int) -> Callable[[int], None]:
    def on_example(finished: int) -> None:
        if finished == n:
            raise Interrupted

    return on_example


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(one: SteeringVectors, other: SteeringVectors) -> bool:
    return one.header == other.header and all(
        torch.equal(getattr(one, part), getattr(other, part)) for part in ("v", "v_pos", "v_neg")
    )


@pytest.fixture(scope="module")
def stopped(llama: HuggingFaceModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a fit that was stopped after two of four examples."""
    work = tmp_path_factory.mktemp("stopped") / "work"
    with pytest.raises(Interrupted):
        run(llama, work, on_example=stop_after(2))
    assert names(work) == ["000000.safetensors", "000001.safetensors", "fit.json"]
    return work


@pytest.fixture
def half_done(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "work"))


@pytest.fixture(scope="module")
def whole(llama: HuggingFaceModel, tmp_path_factory: pytest.TempPathFactory) -> FitRecord:
    """The same fit without a stop."""
    return run(llama, tmp_path_factory.mktemp("whole"))


# --- the same numbers as the reference


@pytest.mark.parametrize("attribution", first_quick(["integrated_gradients", "smoothgrad", "random"]))
def test_a_fit_that_is_kept_on_disk_is_the_reference_bit_for_bit(
    llama: HuggingFaceModel, tmp_path: Path, attribution: Any
) -> None:
    hp = dataclasses.replace(HP, attribution=attribution, n=2)
    expected = fit(llama, [llama.example(p.prompt, p.chosen, p.rejected) for p in PAIRS], hp)
    seen: list[int] = []
    fresh = run(llama, tmp_path / "deep" / "work", hp=hp, on_example=seen.append)
    again = run(llama, tmp_path / "deep" / "work", hp=hp)
    assert seen == [1, 2, 3, 4]
    assert (fresh.resumed, again.resumed) == (0, 4)
    for record in (fresh, again):
        assert torch.equal(record.fit.v, expected.v)
        assert torch.equal(record.fit.pos.v, expected.pos.v)
        assert torch.equal(record.fit.neg.v, expected.neg.v)
        assert torch.equal(record.vectors.v_pos, expected.pos.v.float())
        assert torch.equal(record.vectors.v, expected.pos.v.float() - expected.neg.v.float())


def test_the_header_says_what_the_vectors_were_made_from(llama: HuggingFaceModel, whole: FitRecord) -> None:
    header = whole.vectors.header
    assert header.dialect == "paper"
    assert header.hyper_parameters == dataclasses.asdict(HP) | {"eligible": []}
    assert (header.model_name, header.fingerprint) == (llama.name, llama.fingerprint())
    assert (header.data_digest, header.n_examples) == (content_digest(PAIRS), 4)
    assert header.tokens_digest == tokens_digest(checked_examples(llama, PAIRS, skip_bad_rows=False)[1])
    assert header.diagnostics["neg_gap"] == list(whole.fit.neg.gap)
    assert header.diagnostics["pos_cos_mean"] == list(whole.fit.pos.cos_mean)
    assert len(header.diagnostics) == 6


def test_a_stored_shift_comes_back_whole(llama: HuggingFaceModel, half_done: Path) -> None:
    example = llama.example(PAIRS[1].prompt, PAIRS[1].chosen, PAIRS[1].rejected)
    expected = shift(llama, example, attribute(llama, example, HP).a, HP)
    (_, found, *_) = run(llama, half_done).shifts
    assert found.selection == expected.selection
    for part in ("a", "delta_pos", "delta_neg"):
        assert torch.equal(getattr(found, part), getattr(expected, part))
        assert getattr(found, part).dtype == getattr(expected, part).dtype


# --- interruption


def test_a_stopped_fit_goes_on_with_the_next_example_and_gives_the_same_bits(
    llama: HuggingFaceModel, half_done: Path, whole: FitRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {name: (half_done / name).stat().st_mtime_ns for name in names(half_done)}
    computed = []

    def counted(*args: Any) -> Any:
        computed.append(args)
        return attribute(*args)

    monkeypatch.setattr(grains, "attribute", counted)
    record = run(llama, half_done)
    assert len(computed) == 2
    assert record.resumed == 2
    assert same(record.vectors, whole.vectors)
    assert {name: (half_done / name).stat().st_mtime_ns for name in stored} == stored


@pytest.mark.parametrize("n", first_quick([1, 3, 4]))
def test_it_does_not_matter_where_a_fit_was_stopped(
    llama: HuggingFaceModel, tmp_path: Path, whole: FitRecord, n: int
) -> None:
    with pytest.raises(Interrupted):
        run(llama, tmp_path / "work", on_example=stop_after(n))
    record = run(llama, tmp_path / "work")
    assert record.resumed == n
    assert same(record.vectors, whole.vectors)


@pytest.mark.thorough
def test_a_process_that_is_killed_is_taken_up_by_the_same_command(tmp_path: Path) -> None:
    rows = [
        {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in build_world("simple").split("dev")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))

    def command(name: str) -> list[str]:
        places = ["--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / name)]
        return ["fit", "--model", "tiny:simple-seed0", *places, "--m", "8", "--engine", "reference", "--json"]

    work, out = tmp_path / "v.safetensors.work", tmp_path / "v.safetensors"
    process = interruptions.start(interruptions.as_command(command("v.safetensors")))
    try:
        while not (work / "000001.safetensors").exists():
            assert os.waitpid(process, os.WNOHANG) == (0, 0)  # it runs
            time.sleep(0.002)
    finally:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert not out.exists()
    finished = [name for name in names(work) if name.endswith(".safetensors")]
    assert 2 <= len(finished) < 6
    stored = {name: (work / name).read_bytes() for name in finished}

    again, fresh = (interruptions.finish(command(name)) for name in ("v.safetensors", "fresh.safetensors"))
    assert again["resumed"] == len(stored)
    assert fresh["resumed"] == 0
    assert out.read_bytes() == (tmp_path / "fresh.safetensors").read_bytes()
    assert names(tmp_path) == ["fresh.safetensors", "pairs.jsonl", "v.safetensors"]


def test_what_a_killed_process_was_writing_does_no_harm(
    llama: HuggingFaceModel, half_done: Path, whole: FitRecord
) -> None:
    (half_done / ".grains-123.tmp").write_bytes(b"half a file")
    record = run(llama, half_done)
    assert same(record.vectors, whole.vectors)


def test_a_fit_that_was_killed_in_its_first_moment_starts_again(llama: HuggingFaceModel, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / ".grains-123.tmp").write_text("{")
    assert run(llama, work).resumed == 0


def test_a_full_disk_keeps_what_is_finished_and_a_later_run_goes_on(
    llama: HuggingFaceModel, tmp_path: Path, whole: FitRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"

    write = work_folder.write_whole

    def full_after_two(path: Path, content: bytes) -> None:
        if "000002" <= path.name < "fit":
            raise OSError(errno.ENOSPC, f"{path} could not be written: No space left on device")
        write(path, content)

    monkeypatch.setattr(work_folder, "write_whole", full_after_two)
    with pytest.raises(OSError, match=r"000002.* could not be written: No space left.* finished so far are kept"):
        run(llama, work)
    assert names(work) == ["000000.safetensors", "000001.safetensors", "fit.json"]
    monkeypatch.undo()
    record = run(llama, work)
    assert record.resumed == 2
    assert same(record.vectors, whole.vectors)


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_no_half_written_file_stays_after_an_error(
    llama: HuggingFaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, where, refuse)
    with pytest.raises(OSError, match="Input/output error"):
        run(llama, tmp_path / "work")
    assert names(tmp_path) == []


def test_shifts_without_a_direction_are_kept_for_the_aggregation_that_the_message_advises(
    llama: HuggingFaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DegenerateShiftsError, match=r"the 1 shifts are all equal.* use the aggregation 'mean'"):
        run(llama, tmp_path / "work", pairs=PAIRS[:1])
    mean = dataclasses.replace(HP, aggregation="mean")
    expected = run(llama, tmp_path / "elsewhere", pairs=PAIRS[:1], hp=mean)

    def computed(*args: object) -> None:
        pytest.fail("it was computed again")

    monkeypatch.setattr(grains, "attribute", computed)
    monkeypatch.setattr(grains, "shift", computed)
    record = run(llama, tmp_path / "work", pairs=PAIRS[:1], hp=mean)
    assert record.resumed == 1
    assert same(record.vectors, expected.vectors)


# --- the fast engine: examples in batches


FAST = dataclasses.replace(HP, aggregation="uncentred")


@pytest.fixture(scope="module")
def fast_whole(llama: HuggingFaceModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[FitRecord, Path]:
    """A fit by the fast engine, and its work folder; all four examples go through the model together."""
    work = tmp_path_factory.mktemp("fast") / "work"
    told: list[int] = []
    record = run(llama, work, hp=FAST, engine="fast", on_example=told.append)
    assert told == [4]
    return record, work


def test_the_fast_engine_fits_what_the_reference_fits_and_says_so(
    llama: HuggingFaceModel, tmp_path: Path, fast_whole: tuple[FitRecord, Path]
) -> None:
    record, _ = fast_whole
    expected = run(llama, tmp_path, hp=FAST)
    assert (record.vectors.header.engine, expected.vectors.header.engine) == ("fast", "reference")
    assert record.vectors.v == pytest.approx(expected.vectors.v, abs=1e-4)
    assert [one.selection for one in record.shifts] == [one.selection for one in expected.shifts]


@pytest.mark.parametrize("lost", [(0,), (1, 3), (0, 1, 2, 3)])
def test_whatever_was_finished_the_fast_engine_gives_the_same_bits(
    llama: HuggingFaceModel, tmp_path: Path, fast_whole: tuple[FitRecord, Path], lost: tuple[int, ...]
) -> None:
    record, work = fast_whole
    folder = Path(shutil.copytree(work, tmp_path / "work"))
    for i in lost:
        (folder / f"{i:06d}.safetensors").unlink()
    again = run(llama, folder, hp=FAST, engine="fast")
    assert same(again.vectors, record.vectors)
    assert again.resumed == 4 - len(lost)
    for path in work.iterdir():  # what was computed again is what was lost, bit for bit
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_another_k_costs_the_fast_engine_no_attribution_and_gives_the_same_bits(
    llama: HuggingFaceModel, tmp_path: Path, fast_whole: tuple[FitRecord, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(FAST, k=1)
    expected = run(llama, tmp_path / "elsewhere", hp=other, engine="fast")
    folder = Path(shutil.copytree(fast_whole[1], tmp_path / "work"))
    monkeypatch.setattr(fast.Fast, "scores", lambda *_: pytest.fail("it was attributed again"))
    again = run(llama, folder, hp=other, engine="fast")
    assert same(again.vectors, expected.vectors)


def test_the_budget_is_measured_once_for_a_work_folder(
    llama: HuggingFaceModel, tmp_path: Path, fast_whole: tuple[FitRecord, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(fast_whole[1], tmp_path / "work"))
    (folder / "000002.safetensors").unlink()
    monkeypatch.setattr("grains_ref.fast.memory.free_bytes", lambda device: 1 << 20)  # memory is short today
    again = run(llama, folder, hp=FAST, engine="fast")
    assert same(again.vectors, fast_whole[0].vectors)
    tight = run(llama, tmp_path / "tight", hp=FAST, engine="fast")
    kept = json.loads((tmp_path / "tight" / "fit.json").read_text())
    assert kept["pass_tokens"] < json.loads((folder / "fit.json").read_text())["pass_tokens"]
    assert tight.vectors.v == pytest.approx(fast_whole[0].vectors.v, abs=1e-4)


def test_the_other_engines_work_is_refused(
    llama: HuggingFaceModel, tmp_path: Path, fast_whole: tuple[FitRecord, Path]
) -> None:
    folder = Path(shutil.copytree(fast_whole[1], tmp_path / "work"))
    with pytest.raises(WorkFolderError, match="holds a fit with other engine"):
        run(llama, folder, hp=FAST)


def test_an_example_that_is_not_finite_is_named_also_in_a_batch(
    llama: HuggingFaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = fast.Fast.scores

    def third_overflows(self: Any, examples: Sequence[Any], hp: HyperParameters) -> Any:
        if any("moon" in "".join(example.encoded.tokens) for example in examples):
            raise FloatingPointError("the gradient of f at alpha = 1 is not finite.")
        return scores(self, examples, hp)

    monkeypatch.setattr(fast.Fast, "scores", third_overflows)
    with pytest.raises(FloatingPointError, match=r"^pairs\.jsonl:3: the gradient of f at alpha = 1 is not finite\."):
        run(llama, tmp_path / "work", engine="fast")


# --- the same pairs as other tokens


def chats() -> list[PreferencePair]:
    return [dataclasses.replace(pair, prompt=({"role": "user", "content": pair.prompt},)) for pair in PAIRS]  # type: ignore[typeddict-item]


@pytest.fixture(scope="module")
def dated() -> HuggingFaceModel:
    """A model whose chat template writes today's date, as Llama 3.2's does."""
    model = random_llama()
    model.tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') }}\n{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    return model


def on_day(model: HuggingFaceModel, day: int) -> HuggingFaceModel:
    """The model as it is loaded on another day of November 2026."""
    return HuggingFaceModel(model.hf, model.tokenizer, name=model.name, date=datetime.date(2026, 11, day))


def test_a_template_that_writes_the_date_is_refused_on_the_next_day_and_told_from_other_changes(
    dated: HuggingFaceModel, tmp_path: Path
) -> None:
    first = run(on_day(dated, 26), tmp_path / "first", pairs=chats())
    with pytest.raises(Interrupted):
        run(on_day(dated, 26), tmp_path / "work", pairs=chats(), on_example=stop_after(2))
    words = r"look at pairs\.jsonl:1, .*:2, .*:3, .*:4\. The chat template writes the date: give --date 2026-11-26"
    with pytest.raises(WorkFolderError, match=words):
        run(on_day(dated, 27), tmp_path / "work", pairs=chats())
    second = run(on_day(dated, 27), tmp_path / "second", pairs=chats())
    assert first.vectors.header.data_digest == second.vectors.header.data_digest
    assert first.vectors.header.fingerprint == second.vectors.header.fingerprint
    assert first.vectors.header.tokens_digest != second.vectors.header.tokens_digest
    assert first.vectors.header.chat_template == second.vectors.header.chat_template != ""
    assert (first.vectors.header.date, second.vectors.header.date) == ("2026-11-26", "2026-11-27")
    assert same(run(on_day(dated, 26), tmp_path / "work", pairs=chats()).vectors, first.vectors)


def test_plain_texts_go_through_no_template_and_have_no_date(dated: HuggingFaceModel, tmp_path: Path) -> None:
    header = run(dated, tmp_path / "work").vectors.header
    assert (header.chat_template, header.date) == ("", "")


@pytest.mark.parametrize("part", ["ids", "kinds", "picture", "y_pos", "y_neg"])
def test_a_change_of_anything_that_the_model_sees_is_refused_with_its_row(
    llama: HuggingFaceModel, half_done: Path, part: str
) -> None:
    _, examples, _ = checked_examples(llama, PAIRS, skip_bad_rows=False)
    third = examples[2]
    if part in ("y_pos", "y_neg"):
        changed = dataclasses.replace(third, **{part: getattr(third, part).flip(0)})
    else:
        x = third.encoded
        values = {"ids": x.ids.flip(0), "kinds": (*x.kinds[:-1], "special"), "picture": "another"}
        changed = dataclasses.replace(third, encoded=dataclasses.replace(x, **{part: values[part]}))
    others = [*examples[:2], changed, examples[3]]
    assert tokens_digest(others) != tokens_digest(examples)
    with (
        open_work_folder(half_done) as work,
        pytest.raises(WorkFolderError, match=r"their tokens were others: look at pairs\.jsonl:3\. "),
    ):
        resumable_fit(llama, PAIRS, others, HP, work=work, on_example=lambda n: None, engine="reference")


# --- another fit's folder


@pytest.mark.parametrize(
    ("changed", "key"),
    first_quick(
        [
            ({"pairs": [dataclasses.replace(PAIRS[0], chosen="Yes."), *PAIRS[1:]]}, "data_digest"),
            ({"pairs": PAIRS[::-1]}, "data_digest"),
            ({"pairs": PAIRS[:3]}, "data_digest"),
            ({"hp": dataclasses.replace(HP, m=3)}, "hyper_parameters"),
        ],
        2,
    ),
    ids=["data", "order", "fewer", "m"],
)
def test_changed_data_or_settings_are_refused_by_name(
    llama: HuggingFaceModel, half_done: Path, changed: dict[str, Any], key: str
) -> None:
    before = {name: (half_done / name).read_bytes() for name in names(half_done)}
    with pytest.raises(WorkFolderError, match=f"holds a fit with other .*{key}") as error:
        run(llama, half_done, **changed)
    assert "delete the folder" in str(error.value)
    assert {name: (half_done / name).read_bytes() for name in names(half_done)} == before
    run(llama, half_done)


def test_a_changed_setting_is_shown_before_and_after(llama: HuggingFaceModel, half_done: Path) -> None:
    with pytest.raises(WorkFolderError) as error:
        run(llama, half_done, hp=dataclasses.replace(HP, m=7))
    _, there, now, _ = str(error.value).splitlines()
    assert "there: " in there
    assert '"m": 2' in there
    assert "now: " in now
    assert '"m": 7' in now


def test_another_model_is_refused(half_done: Path) -> None:
    with pytest.raises(WorkFolderError, match=r"with other fingerprint\."):
        run(random_llama(seed=1), half_done)


def test_another_dtype_is_refused(half_done: Path) -> None:
    with pytest.raises(WorkFolderError, match=r"with other dtype\."):
        run(random_llama(dtype=torch.float64), half_done)


def test_other_library_versions_are_refused(
    llama: HuggingFaceModel, half_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "library_versions", lambda: {"torch": "9.9"})
    with pytest.raises(WorkFolderError, match=r"with other versions\."):
        run(llama, half_done)


def test_all_that_changed_is_named(half_done: Path) -> None:
    with pytest.raises(WorkFolderError, match=r"with other data_digest, fingerprint, hyper_parameters, tokens\."):
        run(random_llama(seed=1), half_done, pairs=PAIRS[:3], hp=dataclasses.replace(HP, m=3))


def test_a_folder_with_anything_else_in_it_is_refused_and_left_alone(llama: HuggingFaceModel, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(WorkFolderError, match="is not empty and not a work folder of grains-ref"):
        run(llama, tmp_path)
    assert names(tmp_path) == ["letter.txt"]


# --- tokenising before any work


def bad_pairs() -> list[PreferencePair]:
    return [
        PAIRS[0],
        PreferencePair("a", "Tell me ", "", "Rome.", where=Where("pairs.jsonl", 7)),
        PreferencePair("b", "Tell me ", "Rome.", "", where=Where("pairs.jsonl", 8)),
        PreferencePair("c", "Is the earth flat? " * 40, "No.", "Yes.", where=Where("pairs.jsonl", 9)),
        PAIRS[1],
    ]


@pytest.mark.parametrize(
    ("index", "line", "field", "words"),
    [
        (1, 7, "chosen", "empty; expected text"),
        (2, 8, "rejected", "empty; expected text"),
        (3, 9, "prompt", "but the model takes 128. Shorten the row"),
    ],
)
def test_a_pair_that_does_not_suit_the_model_is_refused_with_file_line_and_field(
    llama: HuggingFaceModel, index: int, line: int, field: str, words: str
) -> None:
    with pytest.raises(RowError) as error:
        checked_examples(llama, [PAIRS[0], bad_pairs()[index]], skip_bad_rows=False)
    assert (error.value.path, error.value.line, error.value.field) == (Path("pairs.jsonl"), line, field)
    assert words in str(error.value)


def test_bad_rows_are_left_out_and_reported_when_asked_for(llama: HuggingFaceModel) -> None:
    kept, examples, skipped = checked_examples(llama, bad_pairs(), skip_bad_rows=True)
    assert [p.id for p in kept] == ["0", "1"]
    assert [row.line for row in skipped] == [7, 8, 9]
    for pair, example in zip(kept, examples, strict=True):
        expected = llama.example(pair.prompt, pair.chosen, pair.rejected)
        assert torch.equal(example.encoded.ids, expected.encoded.ids)
        assert torch.equal(example.y_pos, expected.y_pos)
        assert torch.equal(example.y_neg, expected.y_neg)


def test_a_row_that_just_fits_the_context_is_taken(llama: HuggingFaceModel) -> None:
    room = llama.context - 1 - len(llama.response_ids("?", "Rome."))  # 1 is BOS
    fits = PreferencePair("x", "#" * room, "Rome.", "No", where=Where("pairs.jsonl", 1))  # one token for each
    (_, (example,), _) = checked_examples(llama, [fits], skip_bad_rows=False)
    assert len(example.encoded.ids) + len(example.y_pos) == llama.context
    with pytest.raises(RowError, match=r"= 129, but the model takes 128"):
        checked_examples(llama, [dataclasses.replace(fits, prompt=fits.prompt + "#")], skip_bad_rows=False)


def test_what_the_model_cannot_take_at_all_is_a_row_error_too(llama: HuggingFaceModel, tmp_path: Path) -> None:
    pictured = dataclasses.replace(PAIRS[0], image=tmp_path / "cat.png")
    with pytest.raises(RowError, match=r"pairs\.jsonl:1: random-llama is a text model .* cannot take an image"):
        checked_examples(llama, [pictured], skip_bad_rows=False)
