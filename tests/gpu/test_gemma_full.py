"""Rungs 3 and 4: Gemma-3-12B at full size in bfloat16; 45 GiB are asked for."""

from __future__ import annotations

import pytest
from full_size_suite import SeeingModel

pytestmark = pytest.mark.gpu

CONFIG = "gemma-3-12b"


class TestGemma(SeeingModel):
    """All that holds for every model that sees."""
