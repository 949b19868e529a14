"""Rungs 3 and 4: Llama-3.1-8B at full size in bfloat16, 21 GiB; 53 GiB for the comparison with float32."""

from __future__ import annotations

from pathlib import Path

import ladder
import pytest
from full_size_suite import EveryModel, FullSize, check_recorded_fit
from ports.live_ports import PlainPort

from grains_ref.tiny_models.full_pairs import truthfulqa_shaped_pairs
from grains_ref.tiny_models.full_size import GIB, parameter_bytes

pytestmark = pytest.mark.gpu

CONFIG = "llama-3.1-8b"


class TestLlama(EveryModel):
    """All that holds for every model, and:"""

    @pytest.mark.parametrize("oracle", [False, True], ids=["relations", "float32 copy"])
    def test_a_port_written_on_transformers_alone_passes_the_live_check(self, full: FullSize, oracle: bool) -> None:
        """The kit's `conform live`; with the float32 copy there are 45 GiB of weights on the GPU."""
        copied = 2 * parameter_bytes(full.model) / GIB if oracle else 0.0
        with full.within(copied + 8):
            print(ladder.check_live_port(full.model, full.pairs[:2], PlainPort(), oracle=oracle))

    def test_a_fit_of_fifty_pairs_is_recorded(self, full: FullSize, records: Path) -> None:
        with full.within(full.rung.backward_gib):
            check_recorded_fit(full, truthfulqa_shaped_pairs(50), records)
