"""models/parallel.py: one model over two processes says and computes what one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import wide_llama

from grains_ref.models import UnsupportedModelError, load
from grains_ref.models.parallel import is_spread
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu

SCRIPT = Path(__file__).with_name("in_processes.py")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, place = wide_llama(), tmp_path_factory.mktemp("wide") / "llama"
    model.hf.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    return place


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def results(out: Path, *command: str | Path) -> dict[str, Any]:
    """What every process wrote, by its rank."""
    run = subprocess.run(
        [sys.executable, *map(str, command)], env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.thorough
def test_two_processes_compute_what_one_does(folder: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    alone = results(tmp_path, SCRIPT, folder, tmp_path)["alone"]
    both = results(tmp_path, *launcher, SCRIPT, folder, tmp_path, "tensor_parallel")
    for rank in ("0", "1"):
        found = both[rank]
        assert (alone["is_spread"], found["is_spread"]) == (False, True)
        for name in ("fingerprint", "generate", "eval", "checks"):
            assert found[name] == alone[name], name
        for name in ("scores", "fit", "fast"):
            one, two = torch.tensor(alone[name]), torch.tensor(found[name])
            assert (one - two).norm() <= 1e-4 * one.norm(), name
    assert both["0"] == both["1"]


@pytest.mark.thorough
def test_a_spread_model_is_run_by_every_process_of_a_command(folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"the word is {word}", "chosen": "yes", "rejected": "no"} for word in ("eel", "leek", "plum")]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["-m", "grains_ref.cli", "fit", "--model", folder, "--pairs", pairs, "--aggregation=mean"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    results(tmp_path, *command, "--out", tmp_path / "one")
    results(tmp_path, *launcher, *command, "--out", tmp_path / "two", "--device-map=tensor_parallel")
    one, two = (SteeringVectors.load(tmp_path / name).v for name in ("one", "two"))
    assert (one - two).norm() <= 1e-4 * one.norm()


def test_one_process_alone_is_told_how_to_start_several(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=r"this is one alone\. Start them with 'torchrun --nproc-per-node N'"):
        load(folder, device_map="tensor_parallel")


def test_an_adapter_is_not_merged_into_shares(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"each process would hold only a share .*Merge it first"):
        load(tmp_path, device_map="tensor_parallel")


def test_a_share_is_told_from_a_whole_matrix() -> None:
    model = wide_llama()
    assert not is_spread(model.hf)
    model.hf.lm_head.weight.full_tensor = lambda: None  # as a DTensor has it
    assert is_spread(model.hf)
