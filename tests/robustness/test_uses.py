"""A seeded share of the campaigns over hooks, pictures and readers; a campaign runs as many as it likes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from robustness import hook_uses, pictures, readers

pytestmark = pytest.mark.cpu


def test_every_call_gets_what_its_own_thread_or_task_asks_for(tmp_path: Path) -> None:
    rng = random.Random(3)
    outcomes = Counter(hook_uses.campaign(rng, tmp_path) for _ in range(4))
    assert outcomes["ok"] >= 3


def test_pictures_are_read_as_what_they_show_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    outcomes = Counter(pictures.campaign(rng, tmp_path) for _ in range(60))
    assert min(outcomes["accepted"], outcomes["refused"]) >= 15


def test_damaged_datasets_are_refused_or_give_records_that_make_sense(tmp_path: Path) -> None:
    rng = random.Random(0)
    outcomes = Counter(readers.campaign(rng, tmp_path) for _ in range(3))
    assert outcomes.total() == 3
