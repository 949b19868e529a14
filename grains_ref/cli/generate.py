"""`grains-ref generate`: the plain model's text beside the steered model's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from grains_ref.cli import common, console
from grains_ref.cli.common import (
    BaseOption,
    ChatOption,
    DateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    LamOption,
    LayersOption,
    ModelOption,
    SteeringEngineOption,
)
from grains_ref.cli.report import HtmlOption, check_page, model_facts, write_report
from grains_ref.data.pairs import PicturePaths


def _of_prompts(images: list[Path], n_prompts: int) -> list[PicturePaths]:
    """Which pictures belong to which prompt: all to a single one, one to each of several, or one to all of them."""
    if n_prompts == 1 and len(images) > 1:
        return [tuple(images)]
    if len(images) == 1:
        return [images[0]] * n_prompts
    if images and len(images) != n_prompts:
        raise ValueError(f"{n_prompts} prompts and {len(images)} pictures; give one --image per --prompt, or one")
    return [*images]


@console.guarded
def generate(
    model: ModelOption,
    prompt: Annotated[list[str], typer.Option(help="A prompt; may be given several times.", show_default=False)],
    vectors: Annotated[Path, typer.Option(help="A vectors file.", show_default=False)],
    lam: LamOption = None,
    layers: LayersOption = "",
    image: Annotated[
        list[Path] | None,
        typer.Option(help="A picture; several are those of one prompt, or one for each.", show_default=False),
    ] = None,
    chat: ChatOption = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the continuation.", min=1)] = 64,
    html: HtmlOption = None,
    force: ForceOption = False,
    engine: SteeringEngineOption = "fast",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    base: BaseOption = "",
    date: DateOption = "",
    as_json: JsonOption = False,
) -> None:
    """Continue prompts greedily, unsteered beside steered."""
    check_page(html)
    images = _of_prompts(list(image or []), len(prompt))
    chosen_engine = common.engine_name(engine)
    in_use = common.read_vectors(vectors, lam, layers)
    wrapped = common.load_model(model, dtype, device, device_map, date, base)
    steering = in_use.steering(
        wrapped, force=force, chat=chat, engine=chosen_engine
    )  # refuses other vectors before the work
    prompts = [common.as_prompt(text, chat=chat) for text in prompt]
    common.note_plain_texts(wrapped, prompts, instead="add --chat.")
    unsteered = wrapped.generate(prompts, images=images, max_new_tokens=max_new_tokens)
    with steering:
        steered = wrapped.generate(prompts, images=images, max_new_tokens=max_new_tokens)
    rows = list(zip(prompt, unsteered, steered, strict=True))
    if as_json:
        columns = ("prompt", "unsteered", "steered")
        console.out.print_json(data=[dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table = Table(show_lines=True)
        for name in ("prompt", "unsteered", f"steered, lam {in_use.lam:g}"):
            table.add_column(name)
        for row in rows:
            table.add_row(*(console.plain(cell) or "(nothing)" for cell in row))
        console.out.print(table)
    if html:
        from grains_ref.report.answers import Answer, Answers
        from grains_ref.report.provenance import facts_of

        answers = Answers([Answer(*row) for row in rows], how=in_use.words)
        facts = [*model_facts(wrapped, chat=chat), ("vectors", str(vectors)), *facts_of(in_use.vectors)]
        write_report(
            html, f"{len(rows)} {'prompt' if len(rows) == 1 else 'prompts'}, plain and steered", [answers], facts
        )
