"""`grains-ref export` and `import`: what is written, said, measured and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import SIMPLE, bad, good, parsed, run

from grains_ref.export import find_target
from grains_ref.vectors import SteeringVectors

pytestmark = pytest.mark.cpu

MEASURE = ["--measure", SIMPLE[1]]


def test_export_says_what_is_not_carried_how_much_is_lost_and_how_to_go_on(
    vectors: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.svec"
    given = [vectors, "--to", "svec", "--out", out, "--lam", "2"]
    said = good("export", *given, *MEASURE, "--pairs", data / "dev.jsonl")
    assert f"{out}: for Steerability, lam 2, blocks 0-3 (counted from 0)." in said
    assert "half of norm restoration, equation (8)" in said
    assert "the strength: it is given with the command or the request" in said
    assert "8 prompts of" in said
    assert "AdditiveTransform(vector, strength=2)" in said
    record = parsed("export", *given, *MEASURE, "--pairs", data / "dev.jsonl")
    assert (record["blocks"], record["lam"], len(record["lost"])) == ([0, 1, 2, 3], 2.0, 2)
    assert [row["use"] for row in record["losses"]] == ["NormPreservingTransform", "AdditiveTransform"]
    assert record["losses"][1]["loss"] > 1e-4
    written = find_target("svec").read(out.read_bytes(), "it")
    assert torch.equal(written.by_block[3], SteeringVectors.load(vectors).v[3])


def test_export_without_pairs_measures_on_sentences_of_its_own(vectors: Path, tmp_path: Path) -> None:
    record = parsed("export", vectors, "--to", "sglang", "--out", tmp_path / "h", "--lam", "2", *MEASURE)
    assert record["measured_on"] == "tiny:simple-seed0, 8 sentences"
    assert record["losses"][0]["loss"] < 1e-4
    assert record["lost"] == []


def test_export_takes_strength_and_layers_from_the_sweep(vectors: Path, tmp_path: Path) -> None:
    swept = SteeringVectors.load(vectors)
    choice = {"lam": 2.5, "layers": [1, 3], "dev_accuracy": 0.75}
    replace(swept, header=replace(swept.header, choice=choice)).save(tmp_path / "v")
    record = parsed("export", tmp_path / "v", "--to", "lm-eval", "--out", tmp_path / "v.pt")
    assert (record["blocks"], record["lam"], record["losses"]) == ([1, 3], 2.5, [])
    assert "holds no strength" in bad("export", vectors, "--to", "lm-eval", "--out", tmp_path / "v.pt")


@pytest.mark.usefixtures("no_model")
def test_export_refuses_before_the_work(vectors: Path, tmp_path: Path, data: Path) -> None:
    def refused(to: str, out: str, *more: str | Path) -> str:
        return bad("export", vectors, "--to", to, "--out", tmp_path / out, "--lam", "2", *more)

    assert "there is no target 'ggml'; there are gguf," in refused("ggml", "v.gguf", *MEASURE)
    assert "Steerability reads files that end in .svec: name --out so, not v.json" in refused(
        "svec", "v.json", *MEASURE
    )
    assert "no folder" in refused("svec", "missing/v.svec", *MEASURE)
    assert "Steerability numbers the blocks" in refused("svec", "v.svec", "--blocks", "h.{i}")
    assert "write {i} where the number goes" in refused("lm-eval", "v.pt", "--blocks", "h.0")
    assert "give --measure MODEL too" in refused("svec", "v.svec", "--pairs", data / "dev.jsonl")
    assert "do not exist" in refused("svec", "v.svec", "--layers", "9")
    assert not list(tmp_path.iterdir())


def test_export_to_a_measured_model_of_other_weights_is_refused_and_writes_nothing(
    vectors: Path, other_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.svec"
    refusal = bad("export", vectors, "--to", "svec", "--out", out, "--lam", "2", "--measure", other_model)
    assert "a shape cannot be forced" in refusal
    assert not out.exists()


def test_a_gguf_file_comes_back_without_block_0(vectors: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf: pip install 'grains-ref[gguf]'")
    out, again = tmp_path / "v.gguf", tmp_path / "again"
    record = parsed("export", vectors, "--to", "gguf", "--out", out, "--lam", "2")
    assert (record["blocks"], record["lost"][0][:8]) == ([1, 2, 3], "block 0:")
    said = good("import", out, "--from", "gguf", *SIMPLE, "--out", again)
    assert "vectors of the blocks 1-3" in said
    assert "Not in the file, so not steered: blocks 0." in said
    before, after = SteeringVectors.load(vectors), SteeringVectors.load(again)
    assert torch.equal(after.v[1:], before.v[1:])
    assert not after.v[0].any()
    told = run("generate", *SIMPLE, "--prompt", "Q : what is", "--vectors", again, "--max-new-tokens", "1")
    assert "lam 2, as the sweep stored it" in told.stderr


def test_import_of_a_strangers_file_says_what_it_does_not_know(tmp_path: Path, vectors: Path) -> None:
    v = SteeringVectors.load(vectors).v
    file, out = tmp_path / "v.pt", tmp_path / "v"
    torch.save({0: v[0].clone(), 2: v[2].clone()}, file)
    record = parsed("import", file, "--from", "steering-vectors", *SIMPLE, "--out", out)
    assert record == {"out": str(out), "blocks": [0, 2], "empty_blocks": [1, 3], "lam": None}
    said = good("import", file, "--from", "steering-vectors", *SIMPLE, "--out", out)
    assert "does not say what the vectors were made of" in said
    assert "names no strength: give --lam" in said
    assert parsed("import", file, "--from", "steering-vectors", *SIMPLE, "--out", out, "--lam", "3")["lam"] == 3.0
    file.write_text(json.dumps({"a": 1}))
    refusal = bad("import", file, "--from", "steering-vectors", *SIMPLE, "--out", out)
    assert "neither a safetensors file nor one of torch.save" in refusal
