"""grains_ref.fast on ten families: the live check of the kit, on tiny random models in float32."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from ports import fast_port
from shared import first_quick
from zoo import pictures, recipes
from zoo.seeing import SEEING

from grains_ref.conformance.live import FUNCTIONS, check_live
from grains_ref.data import PreferencePair
from grains_ref.models import HuggingFaceModel
from grains_ref.tiny_models.random_vision_models import noise_picture

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(
        transformers.__version__ < "5.23", reason="configurations are made small by their fields in 5.23"
    ),
]

FAMILIES = {
    "gpt2": "learnt positions",
    "qwen3_vl": "a picture that is also added behind the first blocks",
    "phi3": "fused projections",
    "mistral": "a window shorter than the prompt",
    "gemma4_text": "other heads in every second block",
    "llama4_text": "chunked attention",
    "qwen3_5_text": "linear attention in every second block: each response is computed apart",
    "falcon_h1": "Mamba and attention in one block",
    "llava, mistral text": "a picture's features among the embeddings",
    "internvl": "a picture that is asked for",
}
TOLD = {
    *("objective", "attribution", "contrast", "aggregation", "steer", "a batch is its single rows"),
    *("exchanged responses negate a", "lam = 0 changes nothing", "only the product of lam and v counts"),
}
ANSWERS = ("It is", "No, of cheese")


def model_of(kind: str) -> HuggingFaceModel:
    if kind in SEEING:
        return SEEING[kind]()
    return pictures.tiny(kind) if kind in pictures.TYPES else recipes.tiny(kind)


@pytest.mark.parametrize("kind", first_quick(FAMILIES))
def test_the_live_check_passes_it(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    pairs = [PreferencePair("0", "Q: Is the moon made of rock? A:", *ANSWERS, "here")]
    if model.family.marker:
        noise_picture(90, 50).save(tmp_path / "noise.png")
        pairs.append(PreferencePair("1", "<image> What is it? A:", *ANSWERS, "here", tmp_path / "noise.png"))
    port = SimpleNamespace(**{name: getattr(fast_port, name) for name in FUNCTIONS if hasattr(fast_port, name)})
    results = check_live(model, pairs, port, m=2)
    for pair in pairs:
        of_pair = [result for result in results if result.pair == pair.id]
        assert {result.check for result in of_pair if result.status == "passed"} >= TOLD
    assert not [result for result in results if result.status not in ("passed", "skipped")]
