"""Rungs 3 and 4: Qwen2.5-VL-7B at full size in bfloat16; 38 GiB are asked for."""

from __future__ import annotations

import pytest
from full_size_suite import SeeingModel

pytestmark = pytest.mark.gpu

CONFIG = "qwen2.5-vl-7b"


class TestQwenVL(SeeingModel):
    """All that holds for every model that sees."""
