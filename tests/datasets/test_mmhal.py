"""MMHal-Bench: questions for a judge, and VTI's descriptions to steer with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grains_ref import data
from grains_ref.datasets import mmhal
from grains_ref.datasets.records import DatasetError
from grains_ref.datasets.registry import fixture

pytestmark = pytest.mark.cpu


def test_mmhal_has_its_types_its_pictures_and_what_a_judge_needs(tmp_path: Path) -> None:
    rows = mmhal.read(fixture("mmhal"))
    questions = [mmhal.generation(r) for r in rows]
    assert tuple(q.group for q in questions) == mmhal.QUESTION_TYPES
    assert all(q.images[0].is_file() for q in questions)
    assert (questions[0].image_content, questions[0].topic) == (("Square", "Field"), "food")
    vti = mmhal.read_vti(fixture("mmhal") / mmhal.VTI_FILE, coco=fixture("mmhal") / mmhal.COCO)
    pair = mmhal.pair(vti[3])
    assert (pair.chosen, pair.image) == ("A yellow square on field 3.", vti[3]["picture"])
    template = json.loads((fixture("mmhal") / mmhal.TEMPLATE).read_text())
    (tmp_path / mmhal.TEMPLATE).write_text(json.dumps(template))
    with pytest.raises(data.RowError, match="the picture is missing"):
        mmhal.read(tmp_path)
    template[2]["question_type"] = "colour"
    (tmp_path / mmhal.TEMPLATE).write_text(json.dumps(template))
    (tmp_path / "images").symlink_to(fixture("mmhal") / "images")
    with pytest.raises(data.RowError, match="unknown label 'colour'; expected one of attribute"):
        mmhal.read(tmp_path)
    with pytest.raises(DatasetError, match=r"Download test_data\.zip"):
        mmhal.read()
    with pytest.raises(DatasetError, match=r"holds no response_template\.json"):
        mmhal.read(fixture("spa_vl"))
