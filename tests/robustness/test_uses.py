"""A seeded share of the campaigns over hooks, pictures and readers; a campaign runs as many as it likes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from robustness import hook_uses

pytestmark = pytest.mark.cpu


def test_every_call_gets_what_its_own_thread_or_task_asks_for(tmp_path: Path) -> None:
    rng = random.Random(3)
    outcomes = Counter(hook_uses.campaign(rng, tmp_path) for _ in range(5))
    assert outcomes["ok"] >= 3
