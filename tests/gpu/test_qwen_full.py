"""Rungs 3 and 4: Qwen2.5-7B at full size in bfloat16; 20 GiB are asked for."""

from __future__ import annotations

import pytest
from full_size_suite import EveryModel

pytestmark = pytest.mark.gpu

CONFIG = "qwen2.5-7b"


class TestQwen(EveryModel):
    """All that holds for every model."""
