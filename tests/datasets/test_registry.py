"""All datasets: found, described, downloaded, read whole; and how one more becomes one of them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from typer.testing import CliRunner

import grains_ref.datasets
from grains_ref.cli import app
from grains_ref.data import read_pairs
from grains_ref.datasets import registry
from grains_ref.datasets.records import DatasetError, digest
from grains_ref.datasets.registry import DATASETS, NAMES, available, find, fixture, rehearse
from grains_ref.fixtures import build_datasets

pytestmark = pytest.mark.cpu


# ------------------------------------------------------------------------------------- what there is
@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_reads_its_miniature_whole(name: str) -> None:
    dataset = find(name)
    assert dataset.name == name
    assert min(rehearse(name).values()) >= 4
    assert all(part.rows > 0 for part in dataset.parts)
    assert dataset.title in str(dataset)
    if name != "mmmu":  # the miniature has two of its thirty subjects
        assert available(name, fixture(name)).is_available


def test_every_module_with_a_dataset_is_registered() -> None:
    folder = Path(grains_ref.datasets.__file__).parent
    modules = sorted(path.stem for path in folder.glob("*.py") if "\nDATASET = " in path.read_text(encoding="utf-8"))
    assert modules == list(NAMES)


def test_the_page_names_every_repository_and_its_rows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    for dataset in DATASETS.values():
        assert f"| `{dataset.name}` |" in page
        for part in dataset.parts:
            assert f"`{part.repository.id}`" in page
            assert f"{part.rows:,}" in page


def test_a_description_names_tables_access_and_recipes() -> None:
    lines = str(find("toxigen")).splitlines()
    assert lines[0] == "ToxiGen, annotated (toxigen), for tables 1, 6"
    assert lines[1] == "  toxigen/toxigen-data  annotated/train  8,960 rows"
    assert "needs a token" in lines[3]
    assert lines[4] == "  recipes of pairs: yes_no, statements, reply"
    assert "for tables 1, 4, 6; figures 3, 5, 6; cost" in str(find("truthfulqa"))
    assert "30 configurations/validation  900 rows" in str(find("mmmu"))
    assert "2,492 rows, in no table" in str(find("faitheval"))


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(DatasetError, match="there is no dataset named 'glue'; there are faitheval, humaneval, mmhal"):
        available("glue")


@pytest.mark.thorough
def test_listing_the_datasets_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from grains_ref.cli import app\n"
        "from grains_ref.datasets import truthfulqa\n"
        "app(['datasets', 'list', '--json'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == set(NAMES)
    assert done.stderr.splitlines()[-1] == "[]"


# ------------------------------------------------------------------------------------- how to get it
@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_says_how_to_get_it(name: str) -> None:
    dataset = find(name)
    if dataset.by_hand:
        assert dataset.commands == ()
        return
    for repository in dataset.repositories:
        assert any(f"hf download {repository.id} " in command for command in dataset.commands)
    folders = [repository.folder for repository in dataset.repositories]
    assert len(set(folders)) == len(folders)


def test_available_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    absent = available("toxigen")
    assert not absent.is_available
    assert "hf auth login; hf download toxigen/toxigen-data" in absent.why
    (tmp_path / "toxigen___toxigen-data" / "annotated").mkdir(parents=True)
    assert available("toxigen").is_available
    assert available("toxigen", "skg/toxigen-data").is_available  # the old id
    assert not available("toxigen", "someone/toxigen-data").is_available
    assert "Agriculture" in available("mmmu", fixture("mmmu")).why
    assert "lacks response_template.json" in available("mmhal", tmp_path).why
    assert "unpack test_data.zip" in available("mmhal").why
    assert "no files of split 'test'" in available("faitheval", tmp_path).why
    assert available("faitheval", fixture("faitheval") / "counterfactual").is_available  # the only one that is needed
    assert "no such file or folder" in available("mmlu", tmp_path / "none").why
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in available("mmlu", fixture("mmlu")).why


def test_a_folder_that_lacks_something_is_not_rehearsed_in_part() -> None:
    with pytest.raises(DatasetError, match="Agriculture"):
        rehearse("mmmu", fixture("mmmu"))


# ------------------------------------------------------------------------------------- the miniatures
def test_the_miniatures_are_what_the_script_builds(tmp_path: Path) -> None:
    build_datasets.build(tmp_path / "new")
    built = sorted(path.name for path in (tmp_path / "new").iterdir())
    builders = Path(build_datasets.__file__).parent / "miniatures"
    assert built == [name for name in NAMES if (builders / f"{name}.py").is_file()]
    for name in built:
        dataset = find(name)
        stored = dataset.records(fixture(name), tmp_path / "pictures")
        rebuilt = dataset.records(tmp_path / "new" / name, tmp_path / "pictures")
        assert stored.keys() == rebuilt.keys()
        for form in stored:
            assert digest(rebuilt[form]) == digest(stored[form]), (name, form)


# ------------------------------------------------------------------------------------- one more
FABLES = """
from functools import partial

from grains_ref.data import PreferencePair
from grains_ref.datasets import prompts
from grains_ref.datasets.dataset import Dataset, PairRows, Part
from grains_ref.datasets.schema import TEXT, Schema
from grains_ref.datasets.sources import Repository, load_rows
from grains_ref.datasets.splits import cut, question_key

REPOSITORY = Repository("made-up/fables")
SCHEMA = Schema(dict.fromkeys(("question", "moral", "other"), TEXT))


def read(source=""):
    return load_rows(source, REPOSITORY, config="", split="test", schema=SCHEMA)


def pair(row, *, chat):
    prompt = prompts.as_prompt(row["question"], chat=chat)
    return PreferencePair(row.id, prompt, row["moral"], row["other"], str(row.where))


def pair_rows(source, options):
    keys = lambda row: (question_key(row["question"]),)
    rows = cut(read(source), kind=options.kind, keys=keys, n=options.n, seed=options.seed)
    return PairRows(rows, partial(pair, chat=options.chat))


def records(source, pictures):
    return {"pairs": [pair(row, chat=True) for row in read(source)]}


DATASET = Dataset("fables", "Fables", (), (Part(REPOSITORY, "test", 30),), "none", False, records, pair_rows)
"""


def test_a_new_module_is_listed_and_gives_pairs_without_another_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fables.py").write_text(FABLES, encoding="utf-8")
    data = tmp_path / "data" / "fables"
    data.mkdir(parents=True)
    rows = [{"question": f"What does fable {i} teach?", "moral": f"moral {i}", "other": "nothing"} for i in range(30)]
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(grains_ref.datasets, "__path__", [*grains_ref.datasets.__path__, str(tmp_path)])
    try:
        for name, dataset in registry._find_datasets().items():
            monkeypatch.setitem(registry.DATASETS, name, dataset)
    finally:
        sys.modules.pop("grains_ref.datasets.fables", None)
    command = ["datasets", "pairs", "fables", "--source", str(data), "-n", "5", "--out", str(tmp_path / "pairs.jsonl")]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    assert len(read_pairs(tmp_path / "pairs.jsonl").pairs) == 5
    shown = CliRunner().invoke(app, ["datasets", "list", "--source", str(tmp_path / "data")])
    assert "Fables (fables), for no table of the paper" in shown.output
    assert f"here: read from {data}" in shown.output
    assert rehearse("fables", data) == {"pairs": 30}
