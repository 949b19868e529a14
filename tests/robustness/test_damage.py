"""Some hundred of the seeded mutations; a campaign runs as many as it likes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from robustness import (
    cell_files,
    exported_files,
    imported_files,
    judge_answers,
    port_answers,
    reports,
    sweeps,
    vector_files,
    verdict_files,
    work_folders,
)

pytestmark = pytest.mark.cpu


@pytest.mark.thorough
def test_a_damaged_vectors_file_is_refused_or_means_the_same_or_names_another_digest() -> None:
    rng = random.Random(0)
    outcomes = Counter(vector_files.check(vector_files.mutations(rng)) for _ in range(200))
    assert outcomes["ok"] >= 5  # otherwise nothing that loads is tried
    assert outcomes["typed error"] >= 100


@pytest.mark.thorough
def test_a_damaged_work_folder_leads_to_the_same_vectors_by_its_own_advice() -> None:
    rng = random.Random(0)
    outcomes = Counter(work_folders.check(work_folders.mutations(rng)) for _ in range(60))
    assert outcomes["typed error"] >= 30
    assert work_folders.check(work_folders.finished()[0]) == "ok"


@pytest.mark.parametrize("kind", dict.fromkeys(vector_files.KINDS), ids=lambda kind: kind.__name__)
def test_every_kind_of_damage_changes_the_file(kind: object) -> None:
    rng = random.Random(1)
    original = vector_files.originals()[0]
    assert any(kind(rng, original) != original for _ in range(5))  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("module", "n", "outcomes"),
    [
        (judge_answers, 150, {"accepted", "refused"}),
        (verdict_files, 150, {"accepted", "refused"}),
        (cell_files, 60, {"accepted", "refused"}),
        (port_answers, 100, {"accepted", "refused"}),
        (reports, 10, {"accepted"}),
        (exported_files, 20, {"ok", "typed error"}),
        (imported_files, 150, {"ok", "typed error"}),
        (sweeps, 12, {"refused"}),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if isinstance(value, ModuleType) else "",
)
def test_what_is_damaged_is_refused_or_means_the_same(
    tmp_path: Path, module: ModuleType, n: int, outcomes: set[str]
) -> None:
    rng = random.Random(0)
    ends = set()
    for i in range(n):
        folder = tmp_path / str(i)
        folder.mkdir()
        ends.add(module.campaign(rng, folder))
    assert ends == outcomes
