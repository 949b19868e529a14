"""Sources and schemas: what is read, from where, and what the refusals say."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from grains_ref.data import RowError
from grains_ref.datasets import mmlu, toxigen, truthfulqa
from grains_ref.datasets.records import DatasetError, Where
from grains_ref.datasets.registry import fixture
from grains_ref.datasets.schema import INDEX, LABELS, NUMBER, PICTURE, TEXT, TEXTS, WHOLE, Schema
from grains_ref.datasets.sources import Repository, load_rows, local_files

pytestmark = pytest.mark.cpu

NOTES = Schema({"text": TEXT}, {"score": NUMBER, "note": TEXT})


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(source: Path | str, schema: Schema = NOTES, *, config: str = "", split: str = "test") -> Any:
    return load_rows(source, Repository("someone/notes"), config=config, split=split, schema=schema)


def test_parquet_jsonl_and_json_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": "a", "score": 1, "note": None, "more": [1]}, {"text": "b", "score": 2.5, "note": "n", "more": []}]
    jsonl(tmp_path / "a" / "test.jsonl", *rows)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "test.json").write_text(json.dumps(rows))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    found = [read(tmp_path / "a"), read(tmp_path / "b" / "test.json"), read(tmp_path)]
    assert [[row.fields for row in some] for some in found] == [
        [{"text": "a", "score": 1.0, "note": None}, {"text": "b", "score": 2.5, "note": "n"}]
    ] * 3
    assert [row.id for row in found[0]] == ["test-000001", "test-000002"]
    assert read(jsonl(tmp_path / "whole.jsonl", {"text": "a", "score": 3}))[0]["score"] == 3
    assert found[1][1].where == Where(str(tmp_path / "b" / "test.json"), 2)


def test_reading_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    read(jsonl(tmp_path / "test.jsonl", {"text": "a"}))
    assert [path.name for path in tmp_path.iterdir()] == ["test.jsonl"]


def test_layouts_of_a_folder(tmp_path: Path) -> None:
    for name in ("one/test-00000-of-00002.parquet", "one/test-00001-of-00002.parquet", "two/test/0000.parquet",
                 "two/train/0000.parquet", "one/dev.jsonl", "one/README.json",
                 "other/one/test/0000.parquet"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = lambda **which: [str(p.relative_to(tmp_path)) for p in local_files(tmp_path, **which)]  # noqa: E731
    assert names(config="one", split="test") == ["one/test-00000-of-00002.parquet", "one/test-00001-of-00002.parquet"]
    assert names(config="two", split="test") == ["two/test/0000.parquet"]
    assert names(config="one", split="dev") == ["one/dev.jsonl"]
    with pytest.raises(DatasetError, match=r"expected three/test-.*The folder holds: one/README\.json, one/dev\.jsonl"):
        local_files(tmp_path, config="three", split="test")
    with pytest.raises(DatasetError, match="more than once"):
        local_files(tmp_path, config="", split="test")
    (tmp_path / "one" / "test.jsonl").touch()
    with pytest.raises(DatasetError, match="more than once"):
        local_files(tmp_path, config="one", split="test")


@pytest.mark.parametrize(
    ("row", "schema", "message"),
    [
        ({"factual": "x"}, Schema({"factual?": TEXT}), r"column 'factual\?' is missing. Was 'factual' meant\?"),
        ({"Text": "x"}, NOTES, "column 'text' is missing. Was 'Text' meant"),
        ({"zzz": "x"}, NOTES, r"column 'text' is missing. The columns are: zzz"),
        ({"text": 3}, NOTES, "column 'text' should be a text, found int64"),
        ({"text": "x", "score": "3"}, NOTES, "column 'score' should be a number, found string"),
        ({"text": None}, NOTES, "should be a text, found nothing but nulls"),
        ({"c": "x"}, Schema({"c": TEXTS}), "should be a list of texts, found string"),
        ({"c": [1]}, Schema({"c": TEXTS}), "should be a list of texts, found a list of int64"),
        ({"c": ["x"]}, Schema({"c": TEXT}), "should be a text, found a list of string"),
        ({"c": 1.5}, Schema({"c": WHOLE}), "should be a whole number, found float64"),
        ({"c": 1}, Schema({"c": PICTURE}), "should be an image, found int64"),
        ({"c": "B"}, Schema({"c": ("A", "B")}), "should be a label with the values A, B, found string"),
        (
            {"c": {"x": 1}},
            Schema({"c": {"x": TEXTS}}),
            r"struct of 'x' \(a list of texts\), found a struct of 'x' \(int",
        ),
        ({"c": "x"}, Schema({"c": {"x": TEXTS}}), r"should be a struct of 'x' \(a list of texts\), found string"),
    ],
)
def test_a_column_of_the_wrong_kind_is_named(row: dict[str, Any], schema: Schema, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        read(jsonl(tmp_path / "test.jsonl", row), schema)


@pytest.mark.parametrize(
    ("row", "schema", "message"),
    [
        ({"text": None}, NOTES, "'text': is null"),
        ({"text": "x", "score": float("nan")}, NOTES, "'score': is nan; expected a finite"),
        ({"text": ["a", None]}, Schema({"text": TEXTS}), "holds a null"),
        ({"text": 2}, Schema({"text": ("A", "B")}), r"unknown label 2; expected 0 to 1 \(A, B\)"),
        ({"text": -1}, Schema({"text": ("A", "B")}), "unknown label -1"),
        ({"text": {"l": [0, 2]}}, Schema({"text": {"l": LABELS}}), "'text.l': unknown label 2; expected 0"),
    ],
)
def test_a_value_that_no_type_shows_is_named_with_its_row(
    row: dict[str, Any], schema: Schema, message: str, tmp_path: Path
) -> None:
    kind = schema.columns["text"]
    good = {"text": "x"} if kind == TEXT else {"text": ["a"]} if kind == TEXTS else {"text": 1}
    good = {"text": {"l": [0, 1]}} if isinstance(kind, dict) else good
    with pytest.raises(RowError, match=message) as error:
        read(jsonl(tmp_path / "test.jsonl", good, row), schema)
    assert error.value.line == 2


def test_a_label_with_other_names_is_refused(tmp_path: Path) -> None:
    features = datasets.Features({"c": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_list([{"c": 1}], features=features).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DatasetError, match="label with the values A, B, found a label with the values no, yes"):
        read(tmp_path, Schema({"c": ("A", "B")}))
    assert read(tmp_path, Schema({"c": ("no", "yes")}))[0]["c"] == 1


def test_the_index_of_a_choice_may_be_a_label_with_names_in_order(tmp_path: Path) -> None:
    for names, refused in ((["A", "B"], False), (["0", "1"], False), (["1", "0"], True), (["true", "false"], True)):
        features = datasets.Features({"c": datasets.ClassLabel(names=names)})
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        datasets.Dataset.from_list([{"c": 1}], features=features).to_parquet(folder / "test.parquet")
        if refused:
            with pytest.raises(DatasetError, match="a label whose names are in order, found a label with the values"):
                read(folder, Schema({"c": INDEX}))
        else:
            assert read(folder, Schema({"c": INDEX}))[0]["c"] == 1
    assert read(jsonl(tmp_path / "test.jsonl", {"c": 1}), Schema({"c": INDEX}))[0]["c"] == 1
    with pytest.raises(DatasetError, match="found float64"):
        read(jsonl(tmp_path / "test.jsonl", {"c": 1.5}), Schema({"c": INDEX}))


def test_labels_of_choices_may_be_labels_with_names_in_order(tmp_path: Path) -> None:
    for names, refused in ((["0", "1"], False), (["false", "true"], False), (["true", "false"], True)):
        features = datasets.Features({"c": datasets.List(datasets.ClassLabel(names=names))})
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        datasets.Dataset.from_list([{"c": [0, 1]}], features=features).to_parquet(folder / "test.parquet")
        if refused:
            with pytest.raises(DatasetError, match="should be a list of labels, found a list of a label"):
                read(folder, Schema({"c": LABELS}))
        else:
            assert read(folder, Schema({"c": LABELS}))[0]["c"] == [0, 1]


def test_repeated_ids_are_told_apart(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "test.jsonl", *({"text": text} for text in ("a", "b", "a", "a_3", "a")))
    assert [row.id for row in read(path, Schema({"text": TEXT}, id_column="text"))] == ["a", "b", "a_2", "a_3", "a_4"]


def test_brackets_in_texts_are_no_nesting(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "test.jsonl", {"text": "[" * 300}))[0]["text"] == "[" * 300


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.jsonl", "", "is empty"),
        ("test.jsonl", '{"text": "a"}\n' + '{"text": ' * 101 + "1" + "}" * 101 + "\n", "nested deeper than 100 levels"),
        ("test.json", "[\n" * 30000 + "]\n" * 30000, "nested deeper than 100 levels"),
        ("test.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("test.jsonl", '{"text": "a"}\n{"text": \n', "cannot be read as jsonl: .*JSON parse error"),
        ("test.parquet", "PAR1", "cannot be read as parquet"),
    ],
)
def test_files_that_are_broken(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read(tmp_path)


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string")})
    datasets.Dataset.from_dict({"text": []}, features=features).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DatasetError, match="the split is empty"):
        read(tmp_path)


# ------------------------------------------------------------------------------------- the hub, without it
def gated() -> Exception:
    return datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. Authenticate.")


def unauthorised() -> Exception:
    error = datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' cannot be accessed.")
    error.__cause__ = RuntimeError("401 Client Error")
    error.__cause__.response = SimpleNamespace(status_code=401)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (gated(), "is gated, private or misspelt.*hf auth login"),
        (unauthorised(), "is gated, private or misspelt.*hf auth login"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"), "is the name right"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "--revision refs/convert/parquet"),
        (
            ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"),
            "no copy is on this machine.*hf down",
        ),
        (ValueError("Unknown split \"test\". Should be one of ['train']."), "no split 'test' there.*'train'"),
        (ValueError("BuilderConfig 'x' not found. Available: ['y']"), "'y'"),
        (OSError("disk full"), "cannot be read: OSError: disk full"),
    ],
)
def test_what_the_hub_refuses_is_explained(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DatasetError, match=f"(?s)a/b.*{message}"):
        read("a/b")


def test_moved_and_script_repositories_are_asked_for_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def answer(hub_id: str, config: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((hub_id, config, split, revision))
        return datasets.Dataset.from_list([{"question": "q", "choices": ["a", "b"], "label": 1}])

    monkeypatch.setattr(datasets, "load_dataset", answer)
    rows = truthfulqa.read(config="binary")
    assert str(rows[0].where) == "EleutherAI/truthful_qa_binary/multiple_choice/validation:1"
    with pytest.raises(DatasetError, match="column 'text' is missing"):
        toxigen.read("skg/toxigen-data")
    with pytest.raises(DatasetError, match="column 'mc1_targets' is missing"):
        truthfulqa.read()
    truthfulqa.read("someone/copy_of_binary", config="binary")
    assert asked == [
        ("EleutherAI/truthful_qa_binary", "multiple_choice", "validation", "refs/convert/parquet"),
        ("toxigen/toxigen-data", "annotated", "test", None),
        ("truthfulqa/truthful_qa", "multiple_choice", "validation", None),
        ("someone/copy_of_binary", "multiple_choice", "validation", None),  # of what branch a copy is, it must tell
    ]


@pytest.mark.parametrize("source", ["no/such/folder", "./here", "pairs.jsonl", "data/test.parquet", "/tmp/nowhere"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(source: str) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        read(source)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DatasetError, match=r'pip install "grains-ref\[eval\]"'):
        mmlu.read(fixture("mmlu"))
    monkeypatch.undo()
    monkeypatch.delattr(datasets, "List")
    with pytest.raises(DatasetError, match=r"4 or newer.*found \d"):
        mmlu.read(fixture("mmlu"))


def test_bytes_that_are_no_text_are_the_fault_of_their_row(tmp_path: Path) -> None:
    """The library finds them only when it hands out the row, in an error of its own."""
    (tmp_path / "test.jsonl").write_bytes(b'{"c": "a"}\n{"c": "\xc1"}\n{"c": "b"}\n')
    with pytest.raises(RowError, match=r"cannot be decoded \(.*utf-8.*\); download the file again") as caught:
        read(tmp_path, Schema({"c": TEXT}))
    assert caught.value.line == 2


@pytest.mark.parametrize("text", ["", "  ", "\u200b", "\x00"])
def test_a_question_of_nothing_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RowError, match=r"field 'question': .*; expected text"):
        read(jsonl(tmp_path / "test.jsonl", {"question": text}), Schema({"question": TEXT}))


def test_messages_hold_no_character_that_rewrites_the_screen(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"\\x1b\[2J\\u202e") as caught:
        read(jsonl(tmp_path / "test.jsonl", {"\x1b[2J\u202e": "a"}), Schema({"question": TEXT}))
    assert "\x1b" not in str(caught.value)
