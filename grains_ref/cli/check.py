"""`grains-ref check`: the proof that a model can be read, attributed and steered, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from grains_ref.cli import common, console
from grains_ref.cli.common import BaseOption, DateOption, DeviceMapOption, DeviceOption, DtypeOption, JsonOption

if TYPE_CHECKING:
    from grains_ref.models.proof import Proof


@console.guarded
def check(
    model: Annotated[
        str,
        typer.Argument(help="A local folder, a hub id, or tiny:NAME for an embedded model.", show_default=False),
    ],
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    base: BaseOption = "",
    date: DateOption = "",
    as_json: JsonOption = False,
) -> None:
    """Can this model be attributed and steered? Prints what is tried whenever it is loaded, and what was found."""
    from grains_ref.models.proof import ProofFailedError

    refusal = ""
    facts: dict[str, Any] = {}
    try:
        wrapped = common.load_model(model, dtype, device, device_map, date, base)
    except ProofFailedError as error:
        proof, refusal = error.proof, str(error)
    else:
        proof = wrapped.proof
        facts = {
            "model_type": wrapped.hf.config.model_type,
            "blocks": len(wrapped.blocks),
            "width": wrapped.width,
            "context": wrapped.context,
            "dtype": str(wrapped.hf.dtype).removeprefix("torch."),
            "sees": bool(wrapped.family.marker),
            "origin": wrapped.origin,
        }
    if as_json:
        console.out.print_json(data={"model": model, **facts, **proof.as_dict(), "refusal": refusal})
    else:
        console.out.print(_table(model, proof))
        if facts:
            sees = "takes text and pictures" if facts["sees"] else "takes text"
            what = f"{facts['model_type']}, {facts['blocks']} blocks of width {facts['width']}, {facts['dtype']}"
            console.out.print(f"{what}: can be attributed and steered; {sees}.")
    if refusal:
        console.err.print("refused", style="bold red", end=" ")
        console.err.print(refusal)
        raise typer.Exit(1)


def _table(model: str, proof: Proof) -> Table:
    table = Table(title=console.plain(f"Proof of {model}"), title_justify="left", box=SIMPLE_HEAD)
    for column in ("check", "expected", "found", ""):
        table.add_column(column, overflow="fold")
    for line in proof.checks:
        words = (line.name, line.expected, line.found, "passed" if line.passed else "FAILED")
        table.add_row(*(console.plain(text) for text in words))
    return table
