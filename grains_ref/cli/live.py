"""`grains-ref conform live`: a PyTorch or Hugging Face port against the reference, on your own model and pairs."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from grains_ref.cli.console import err, guarded, out, table_of


@guarded
def live(
    model: Annotated[str, typer.Option(help="A local folder, a hub id, or tiny:NAME.", show_default=False)],
    pairs: Annotated[Path, typer.Option(help="Preference pairs (JSONL).", show_default=False)],
    port: Annotated[str, typer.Option(help="A Python module with live_* functions.", show_default=False)],
    seeds: Annotated[int, typer.Option(help="Draws of random vectors and states per pair.")] = 3,
    limit: Annotated[int, typer.Option(help="Use the first pairs only.")] = 8,
    m: Annotated[int, typer.Option(help="Quadrature steps.")] = 5,
    oracle: Annotated[
        bool, typer.Option(help="Compare with the reference in float32 (needs a second copy of the weights).")
    ] = True,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all results here.", show_default=False)
    ] = None,
) -> None:
    """Check a port on a real model and real pairs, at any size. Exit code 0: no failure; 1: failure, or nothing ran."""
    from grains_ref.cli.commands import _load, _read_pairs, where
    from grains_ref.conformance.live import check_live

    sys.path.insert(0, str(Path.cwd()))
    module = importlib.import_module(port)
    rows = _read_pairs(pairs, skip_bad_rows=False).pairs[:limit]
    wrapped = _load(model, dtype, device, "")
    with err.status("checking"):
        results = check_live(wrapped, rows, module, seeds=range(seeds), path=where(model), m=m, oracle=oracle)
    counts = {
        check: Counter(r.status for r in results if r.check == check)
        for check in dict.fromkeys(r.check for r in results)
    }
    table = []
    for check, count in counts.items():
        worst = max(
            (r for r in results if r.check == check), key=lambda r: r.error / r.allowed if r.allowed else r.error
        )
        words = ", ".join(f"{number} {status}" for status, number in count.items())
        table.append((check, words, f"{worst.error:.1e}", f"{worst.allowed:.1e}"))
    out.print(table_of(f"{port} on {model}, {len(rows)} pairs", ("check", "results", "worst error", "allowed"), table))
    failures = [r for r in results if r.status == "failed"]
    for failure in failures[:5]:
        out.print(f"{failure.check}, pair {failure.pair}: {failure.message}", style="red")
    if json_file:
        json_file.write_text(json.dumps([asdict(result) for result in results], indent=1, default=str) + "\n")
    if failures or not any(result.status == "passed" for result in results):
        raise typer.Exit(1)
