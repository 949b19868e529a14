"""SPA-VL: pictures from inside the data, and pairs about them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import datasets
import pytest
from dataset_rows import WHOLE, assert_commands_fetch_what_is_read, row
from PIL import Image

from grains_ref import data
from grains_ref.datasets import spa_vl
from grains_ref.datasets.registry import fixture
from grains_ref.tiny_models.random_vision_models import random_llava

pytestmark = pytest.mark.cpu


def test_spa_vl_pictures_are_kept_once_as_they_are(tmp_path: Path) -> None:
    rows = spa_vl.read(fixture("spa_vl"), pictures=tmp_path)
    assert len(rows) == 12
    assert len(list(tmp_path.iterdir())) == 11  # two rows share a picture
    assert rows[4]["image"] == rows[5]["image"]
    for seed in range(5):  # so the two are never on both sides of a cut
        cut = spa_vl.split(fixture("spa_vl"), n=4, seed=seed, pictures=tmp_path)
        assert any({rows[4].id, rows[5].id} <= {r.id for r in part} for part in (cut.steering, cut.dev, cut.test))
    assert rows[7]["image"].suffix == ".jpeg"
    for path in tmp_path.iterdir():
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    stored = datasets.Dataset.from_parquet(
        str(fixture("spa_vl") / "validation" / "validation-00000-of-00001.parquet"),
        cache_dir=str(tmp_path.parent / "arrow"),
    ).cast_column("image", datasets.Image(decode=False))
    assert [r["image"].read_bytes() for r in rows] == [one["bytes"] for one in stored["image"]]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert spa_vl.read(fixture("spa_vl"), pictures=tmp_path) == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    pair = spa_vl.pair(rows[0])
    assert (pair.image, pair.rejected) == (rows[0]["image"], rows[0]["rejected"])
    assert spa_vl.generation(rows[0]).references == (pair.chosen,)
    with pytest.raises(data.RowError, match="same text as 'chosen'"):
        spa_vl.pair(row(question="q", chosen="a", rejected="a", image=None))


def test_spa_vl_in_the_json_form_with_pictures_beside_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), "red").save(tmp_path / "a.png")
    rows = [{"id": 7, "image": "a.png", "question": "q", "chosen": "c", "rejected": "r"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    one = spa_vl.read(tmp_path / "train.json")[0]
    assert one["image"] == tmp_path / "a.png"
    rows[0]["image"] = "b.png"
    (tmp_path / "train.json").write_text(json.dumps(rows))
    with pytest.raises(data.RowError, match=r"b\.png: no such file"):
        spa_vl.read(tmp_path / "train.json")


def test_pairs_go_through_a_vision_model_plain_and_as_chat(tmp_path: Path) -> None:
    one = spa_vl.read(fixture("spa_vl"), pictures=tmp_path)[0]
    model = random_llava()
    for chat in (True, False):
        pair = spa_vl.pair(one, chat=chat)
        encoded = model.encode(pair.prompt, pair.image)
        assert "image" in encoded.kinds


def test_the_command_fetches_one_file_and_not_the_training_pictures(tmp_path: Path) -> None:
    hub_files = [f"data/train-0000{i}-of-00008.parquet" for i in range(8)]
    hub_files += [f"validation/validation-{WHOLE}", f"test/harm-{WHOLE}", f"test/help-{WHOLE}", "pictures.zip"]
    assert_commands_fetch_what_is_read("spa_vl", {"sqrti/SPA-VL": hub_files}, tmp_path)
    assert spa_vl.DATASET.commands == (
        'hf download sqrti/SPA-VL --repo-type dataset --local-dir FOLDER --include "validation/*"',
    )
