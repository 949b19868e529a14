"""Rungs 3 and 4: LLaVA-1.6-7B at full size in bfloat16, with pictures of a camera's size; 33 GiB, 57 are asked for."""

from __future__ import annotations

from pathlib import Path

import ladder
import pytest
from full_size_suite import FullSize, SeeingModel, check_recorded_fit
from ports.live_ports import reference_port

pytestmark = pytest.mark.gpu

CONFIG = "llava-v1.6-vicuna-7b"


class TestLlava(SeeingModel):
    """All that holds for every model that sees, and:"""

    def test_the_reference_passes_the_live_check_with_a_picture(self, full: FullSize) -> None:
        """One pair and one step: each attribution of 2400 tokens takes as much memory as the fit."""
        with full.within(full.rung.backward_gib):
            print(ladder.check_live_port(full.model, full.pairs[:1], reference_port(), oracle=False, m=1))

    def test_a_fit_of_four_pairs_is_recorded(self, full: FullSize, records: Path) -> None:
        with full.within(full.rung.backward_gib):
            check_recorded_fit(full, full.pairs, records, prompt=(2000, 2500), response=(5, 25))
