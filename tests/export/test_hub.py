"""Sharing by huggingface_hub's mixin: folders, a stand-in for the hub, and the model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin

from grains_ref.export import hub
from grains_ref.export.hub import SharedVectors, card_text
from grains_ref.vectors import Header, SteeringVectors, VectorFileError

pytestmark = pytest.mark.cpu

HEADER = Header(
    dialect="paper",
    hyper_parameters={"k": 3},
    model_name="maker/model-7b",
    fingerprint="f0",
    data_digest="d0",
    tokens_digest="t0",
    chat_template="c0",
    n_examples=50,
    versions={"torch": "2"},
    diagnostics={"pos_explained": [0.5, 0.25], "note": 0.5},
    choice={
        "lam": 2.5, "layers": [0, 1], "dev_accuracy": 0.75, "dev_accuracy_unsteered": 0.5, "dev_pairs": 40,
        "dev_curve": [[0.0, 0.5], [2.5, 0.75], [4.0, 0.625]],
        "task_accuracy": 0.9, "task_accuracy_unsteered": 0.95, "tasks": 20, "max_loss": 5.0,
    },
)  # fmt: skip


@pytest.fixture
def vectors() -> SteeringVectors:
    v_pos, v_neg = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    return SteeringVectors(v=v_pos - v_neg, v_pos=v_pos, v_neg=v_neg, header=HEADER)


def test_a_folder_gives_back_the_same_vectors_and_header(vectors: SteeringVectors, tmp_path: Path) -> None:
    SharedVectors(vectors).save_pretrained(tmp_path)
    again = SharedVectors.from_pretrained(tmp_path).vectors
    assert torch.equal(again.v, vectors.v)
    assert torch.equal(again.v_neg, vectors.v_neg)
    assert again.header == HEADER
    assert {path.name for path in tmp_path.iterdir()} == {"vectors.safetensors", "README.md", "config.json"}
    assert json.loads((tmp_path / "config.json").read_text())["file"] == "vectors.safetensors"


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token: Any = None) -> None:
            pass

        def create_repo(self, *, repo_id: str, **more: Any) -> SimpleNamespace:
            (root / repo_id).mkdir(parents=True, exist_ok=True)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **more: Any) -> str:
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return f"commit to {repo_id}"

    def download(repo_id: str, filename: str, **more: Any) -> str:
        return str(root / repo_id / filename)

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda repo_id, filename, **more: download(repo_id, filename))
    monkeypatch.setattr(hub, "hf_hub_download", download)
    return root


def test_what_is_pushed_to_the_hub_is_what_others_load(
    vectors: SteeringVectors, repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert SharedVectors(vectors, behaviour="tells the truth").push_to_hub("me/true") == "commit to me/true"
    assert "tells the truth" in (repositories / "me/true/README.md").read_text()
    assert torch.equal(SharedVectors.from_pretrained("me/true").vectors.v, vectors.v)
    SharedVectors(vectors * 2.0).push_to_hub("me/true")  # a new version replaces the old one, its card too
    assert "was not described" in (repositories / "me/true/README.md").read_text()
    assert torch.equal(SharedVectors.from_pretrained("me/true").vectors.v, (vectors * 2.0).v)


def test_a_card_is_never_left_beside_other_vectors_nor_an_edited_one_lost(
    vectors: SteeringVectors, tmp_path: Path
) -> None:
    SharedVectors(vectors).save_pretrained(tmp_path)
    SharedVectors(vectors).save_pretrained(tmp_path)
    with pytest.raises(VectorFileError, match="another model card than the one to be written"):
        SharedVectors(vectors * 2.0).save_pretrained(tmp_path)
    assert torch.equal(SharedVectors.from_pretrained(tmp_path).vectors.v, vectors.v)


def test_a_models_configuration_is_not_lost(vectors: SteeringVectors, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(VectorFileError, match=r"another config.json than that of vectors"):
        SharedVectors(vectors).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llama"}'


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_what_else_is_in_a_shared_folder_is_not_read(vectors: SteeringVectors, tmp_path: Path, name: str) -> None:
    SharedVectors(vectors).save_pretrained(tmp_path)
    for content in (b"[" * 99_999, b"\xff", b""):
        (tmp_path / name).write_bytes(content)
        assert torch.equal(SharedVectors.from_pretrained(tmp_path).vectors.v, vectors.v)
        with pytest.raises(VectorFileError, match="is another"):
            SharedVectors(vectors).save_pretrained(tmp_path)


def test_a_card_takes_figures_where_figures_are_expected(vectors: SteeringVectors) -> None:
    choice = HEADER.choice | {
        "max_loss": "\x1b[2J",
        "dev_accuracy": 10**400,
        "tasks": ["|"],
        "dev_curve": [[None, "x"]],
    }
    text = card_text(replace(vectors, header=replace(HEADER, choice=choice)))
    for words in ("40 dev pairs: ? steered", "of ? other tasks", "? points were allowed", "| ? | ? |"):
        assert words in text, words
    assert "\x1b" not in text


def test_a_damaged_or_missing_file_is_refused(vectors: SteeringVectors, tmp_path: Path) -> None:
    SharedVectors(vectors).save_pretrained(tmp_path)
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VectorFileError, match="truncated"):
        SharedVectors.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(VectorFileError, match="does not exist"):
        SharedVectors.from_pretrained(tmp_path)


def test_the_card_says_what_the_header_says(vectors: SteeringVectors) -> None:
    card = SharedVectors(vectors, behaviour="repeats fewer rumours").generate_model_card()
    assert card.data.base_model == "maker/model-7b"
    assert card.data.library_name == "grains_ref"
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    text = " ".join(card.text.split())
    for words in (
        "repeats fewer rumours", "Strength 2.5.", "lam=2.5, layers=[0, 1]",
        "40 dev pairs: 75.0 % steered, 50.0 % unsteered",
        "Cost: 90.0 % of 20 other tasks right, 95.0 % unsteered; 5.0 points were allowed", "| 4.0 | 62.5 % |",
        "| data digest | d0 |", "| chat template | c0 |", "| layer | length of v | pos_explained |",
    ):  # fmt: skip
        assert words in text, words
    assert "Warnings" not in text


def test_the_card_warns_of_what_was_not_done(vectors: SteeringVectors) -> None:
    v = vectors.v.clone()
    v[1] = 0
    header = replace(HEADER, choice={}, n_examples=5, dialect="authors")
    text = card_text(SteeringVectors(v=v, v_pos=v, v_neg=0 * v, header=header))
    for words in ("strength was not chosen", "Made of 5 examples", "other rules than the paper's: authors", "blocks 1"):
        assert words in text
    header = replace(HEADER, choice={"lam": 1.0, "layers": [0]})
    assert "other skills was not measured" in card_text(replace(vectors, header=header))


def test_texts_of_a_header_cannot_become_markup(vectors: SteeringVectors) -> None:
    header = replace(
        HEADER, model_name="<script>x</script>\n# [a](b)", chat_template="| <b>", hyper_parameters={"<i>": 1}
    )
    shared = SharedVectors(replace(vectors, header=header), behaviour="<img src=x>\n# Title")
    text = str(shared.generate_model_card())
    assert "\n# Title" not in text
    assert "\n# [a]" not in text
    assert "<img" not in text.replace("\\<", "")
    assert "<script" not in text.replace("\\<", "")
    assert "<b>" not in text
    assert "<i>" not in text


def test_a_card_of_another_method_says_where_its_vectors_are_added_and_adds_them_there(
    vectors: SteeringVectors,
) -> None:
    place: dict[str, Any] = {"method": "edit_gradient", "site": "mlp", "positions": "after_prompt", "dialect": "none"}
    signal = {"line": "none found."}
    text = card_text(replace(vectors, header=replace(HEADER, **place, signal=signal)))
    assert r"edit\_gradient, which is not GrAInS" in text
    assert r"added at the site mlp, positions after\_prompt, and nowhere else" in text
    assert "with steering_of(model, vectors, lam=2.5, layers=[0, 1]):" in text
    assert "Signal: none found." in text
    assert "Steering(model.blocks" not in text
    assert "Made by other rules" not in text
    assert "with Steering(model.blocks, vectors.v, lam=2.5" in card_text(vectors)
