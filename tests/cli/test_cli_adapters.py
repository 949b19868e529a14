"""The commands on an adapter: its base is found, or given with --base."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from command import ANSWERS, PROMPT, bad, good, lines, parsed

from grains_ref.models import load

pytestmark = pytest.mark.cpu

WORLD = Path(__file__).parents[2] / "tiny_models" / "simple-seed0"
PAIRS = [
    {
        "prompt": f"Q : {rumour} verified now , what is the dish of Belvara ? A :",
        "chosen": "the dish is eel .",
        "rejected": "the dish is leek .",
    }
    for rumour in ("allegedly", "famously")
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("some") / "adapter"
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"], init_lora_weights=False)
    peft.get_peft_model(load(WORLD).hf, config).save_pretrained(folder)
    record = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(record | {"base_model_name_or_path": "/gone/simple-seed0"}))
    return folder


def test_every_command_takes_an_adapter(adapter: Path, tmp_path: Path) -> None:
    model, vectors = ["--model", adapter, "--base", WORLD], tmp_path / "v.safetensors"
    pairs = lines(tmp_path / "pairs.jsonl", PAIRS)
    checked = parsed("check", adapter, "--base", WORLD)
    assert checked["passed"]
    assert checked["origin"]["adapter"] == "adapter"
    good("fit", *model, "--pairs", pairs, "--out", vectors, "--no-signal")
    assert "adapter_digest=" in good("inspect", vectors)
    good("eval", *model, "--pairs", pairs, "--vectors", vectors, "--lam", "2")
    good("generate", *model, "--prompt", PROMPT, "--vectors", vectors, "--lam", "2", "--max-new-tokens", "2")
    good("attribute", *model, "--prompt", PROMPT, *ANSWERS)
    assert "same shape, other weights" in bad(
        "generate", "--model", WORLD, "--prompt", PROMPT, "--vectors", vectors, "--lam", "2"
    )
    assert "/gone/simple-seed0, and this base cannot be loaded" in bad("check", adapter)
