"""`grains-ref attribute` and `grains-ref inspect`: look at one prompt, look into a vectors file."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from grains_ref.cli import common, console
from grains_ref.cli.common import (
    BaselineOption,
    BaseOption,
    ChatOption,
    DateOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    EligibleOption,
    EngineOption,
    JsonOption,
    KOption,
    ModelOption,
    MOption,
    PresetOption,
)
from grains_ref.cli.report import HtmlOption, check_page, model_facts, settings_fact, write_report
from grains_ref.data.pairs import PicturePaths
from grains_ref.files import check_target

if TYPE_CHECKING:
    from grains_ref.grains import Attribution, Encoded, HyperParameters, Selection

SIGNAL_TITLES = {  # of the figures that a fit's signal has for every layer
    "cosine": "cos(v, gradient)",
    "slope": "nats per lam",
    "halves": "cos(halves)",
    "length": "|v| / |state|",
}
MOSTLY = 0.5  # of the selected tokens: if more of them are not the user's, that is worth a word of advice
MANY_IMAGE_TOKENS = 60  # of more than these only the selected ones are printed


@console.guarded
def attribute(
    model: ModelOption,
    prompt: Annotated[str, typer.Option(help="The prompt, as plain text.", show_default=False)],
    chosen: Annotated[str, typer.Option(help="The preferred response.", show_default=False)],
    rejected: Annotated[str, typer.Option(help="The other response.", show_default=False)],
    image: Annotated[
        list[Path] | None,
        typer.Option(help="A picture for each <image> in the prompt; may be given several times.", show_default=False),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(help="Draw the scores on the picture: a PNG to write, one for each picture.", show_default=False),
    ] = None,
    html: HtmlOption = None,
    chat: ChatOption = False,
    preset: PresetOption = "",
    k: KOption = None,
    m: MOption = None,
    method: Annotated[str, typer.Option(help="integrated_gradients, gradient, smoothgrad or random.")] = "",
    path_baseline: BaselineOption = "",
    eligible: EligibleOption = None,
    engine: EngineOption = "fast",
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    base: BaseOption = "",
    date: DateOption = "",
    as_json: JsonOption = False,
) -> None:
    """Which tokens of one prompt, words or image patches, push the model toward the chosen or the rejected response?"""
    from grains_ref.data import PreferencePair, check_texts
    from grains_ref.data.images import read_picture
    from grains_ref.fast import engine_of
    from grains_ref.fitting import checked_examples
    from grains_ref.grains import eligible_tokens, select
    from grains_ref.models.diagnosis import explained
    from grains_ref.report.attributions import Attributed, Attributions

    if overlay and not image:
        raise ValueError("--overlay draws on a picture; give one with --image")
    images = list(image or [])
    if html and len(images) > 1:
        raise ValueError(f"--html shows one picture, and {len(images)} were given; --overlay draws on each of them")
    targets = _targets(overlay, len(images)) if overlay else []
    for target in targets:
        check_target(target)
    check_page(html)
    check_texts(prompt=prompt, chosen=chosen, rejected=rejected)
    chosen_engine = common.engine_name(engine)
    choose_hp = common.hyper_parameters(
        preset, k=k, m=m, attribution=method, path_baseline=path_baseline, eligible=eligible
    )
    wrapped = common.load_model(model, dtype, device, device_map, date, base)
    hp = choose_hp(wrapped)
    pair = PreferencePair("", common.as_prompt(prompt, chat=chat), chosen, rejected, "command line", _paths(images))
    _, (example,), _ = checked_examples(wrapped, [pair], skip_bad_rows=False)
    common.note_plain_texts(wrapped, [pair.prompt], instead="add --chat.")
    if overlay:
        _check_boxes(example.encoded)
    attribution = explained(wrapped, lambda: engine_of(chosen_engine, wrapped).attribute(example, hp))
    selection = select(attribution.a, k=hp.k, eligible=eligible_tokens(example.encoded, hp.eligible))
    if targets:
        _draw(example.encoded, attribution, selection, images, targets, title=f"{chosen}  rather than  {rejected}")
    if html:
        example_of_page = Attributed.of(
            prompt,
            chosen,
            rejected,
            encoded=example.encoded,
            attribution=attribution,
            selection=selection,
            is_complete=hp.attribution == "integrated_gradients",
            picture=read_picture(images[0]) if images else None,
        )
        facts = [*model_facts(wrapped, chat=chat), settings_fact(hp)]
        write_report(html, f"{chosen} rather than {rejected}", [Attributions([example_of_page])], facts)
    if as_json:
        inputs = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        inputs["image"] = str(images[0].resolve()) if len(images) == 1 else ""
        console.out.print_json(data=inputs | _record(example.encoded, attribution, selection, hp))
        return
    _print_scores(example.encoded, attribution, selection)
    for target in targets:
        console.out.print(f"The picture with its scores: {target}")
    preferred = "neither response"
    if attribution.f_x != 0:
        preferred = "the chosen response" if attribution.f_x > 0 else "the rejected response"
    verdict = f"f(x) = {attribution.f_x:+.2f} nats: the model prefers {preferred}."
    if hp.attribution == "integrated_gradients":  # the others promise no completeness
        gap = f"Completeness gap {attribution.gap:+.2f} nats"
        verdict += f" {gap}: of the quadrature with m = {hp.m}, not an error."
    console.out.print(verdict)


def _paths(images: list[Path]) -> PicturePaths:
    if len(images) > 1:
        return tuple(images)
    return images[0] if images else None


def _targets(overlay: Path, n_pictures: int) -> list[Path]:
    """The files to draw: scores.png, or of several pictures scores-1.png, scores-2.png, ..."""
    if n_pictures == 1:
        return [overlay]
    return [overlay.with_name(f"{overlay.stem}-{i + 1}{overlay.suffix}") for i in range(n_pictures)]


def _check_boxes(encoded: Encoded) -> None:
    """Refuse to draw where nothing can be drawn.

    Raises:
        ValueError: it is not known where this model's image tokens look.
    """
    if not any(getattr(encoded, "patches", ())):
        raise ValueError(
            "--overlay: where this model's image tokens look is not known, so their scores cannot be drawn; leave "
            "--overlay out: everything else works"
        )


def _draw(
    encoded: Encoded,
    attribution: Attribution,
    selection: Selection,
    images: list[Path],
    targets: list[Path],
    *,
    title: str,
) -> None:
    """Each picture with the scores of its own tokens."""
    from grains_ref.data.images import read_picture
    from grains_ref.report.overlay import Panel, overlay_figure
    from grains_ref.report.tokens import framing_words

    patches = getattr(encoded, "patches", ())
    words = framing_words(encoded.kinds, selection)
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        own = [patch if patch and patch.picture == i else None for patch in patches]
        pos = [j for j in selection.pos if own[j] or not patches[j]]
        neg = [j for j in selection.neg if own[j] or not patches[j]]
        name = f"picture {i + 1} of {len(images)}" if len(images) > 1 else ""
        panel = Panel(name, own, attribution.a.tolist(), pos, neg, words=words)
        overlay_figure(target, read_picture(image), [panel], title=title)


def _record(encoded: Encoded, attribution: Attribution, selection: Selection, hp: HyperParameters) -> dict[str, Any]:
    from grains_ref.report.tokens import framing_share

    patches = [patch._asdict() if patch else None for patch in getattr(encoded, "patches", ())]
    return {
        "tokens": list(encoded.tokens),
        "kinds": list(encoded.kinds),
        "patches": patches,
        "scores_nats": attribution.a.tolist(),
        "positive": list(selection.pos),
        "negative": list(selection.neg),
        "selected_kinds": Counter(encoded.kinds[j] for j in (*selection.pos, *selection.neg)),
        "share_not_of_the_user": framing_share(encoded.kinds, selection),
        "preference_nats": attribution.f_x,
        "completeness_gap_nats": attribution.gap,
        "hyper_parameters": hp.as_dict(),
    }


def _print_scores(encoded: Encoded, attribution: Attribution, selection: Selection) -> None:
    """The prompt in colours, its strongest tokens, and what words and picture add up to."""
    from grains_ref.report.tokens import (
        CLOSING,
        OPENING,
        coloured_tokens,
        framing_share,
        framing_words,
        named_tokens,
        strongest_tokens,
    )

    tokens, a = named_tokens(encoded), attribution.a
    image_tokens = [j for j, kind in enumerate(encoded.kinds) if kind == "image"]
    hidden: set[int] = set()
    if len(image_tokens) > MANY_IMAGE_TOKENS:
        hidden = set(image_tokens) - set(selection.pos) - set(selection.neg)
    kinds = encoded.kinds
    if "template" not in kinds and not framing_share(kinds, selection):
        kinds = ()  # a plain text, whose first token may be special: nothing to tell apart
    console.out.print(coloured_tokens(tokens, a, selection, {}, hidden=hidden, kinds=kinds))
    console.out.print(strongest_tokens(tokens, a, selection, kinds=kinds))
    if words := framing_words(kinds, selection):
        console.out.print(f"{words}. {OPENING}...{CLOSING}: of the chat template, or special.")
        if framing_share(kinds, selection) > MOSTLY:
            console.out.print("--eligible content leaves the user's words to choose from.", style="yellow")
    if image_tokens:
        of_image = float(a[image_tokens].sum())
        of_others = float(a.sum()) - of_image
        n = len(image_tokens)
        console.out.print(f"Sums: {n} image tokens {of_image:+.2f}, all others {of_others:+.2f} nats.")


@console.guarded
def inspect(
    vectors: Annotated[Path, typer.Argument(help="A vectors file.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Say in words what a vectors file holds."""
    from grains_ref.vectors import SteeringVectors

    loaded = SteeringVectors.load(vectors)
    columns = ("v", "v_pos", "v_neg", "cos")
    layers = [dict(zip(columns, figures, strict=True)) for figures in loaded.norms()]
    if as_json:
        plain = [{name: None if math.isnan(value) else value for name, value in layer.items()} for layer in layers]
        console.out.print_json(data={"header": json.loads(loaded.header.to_json()), "layers": plain})
        return
    facts = Table(title=console.plain(str(vectors)), title_justify="left", box=SIMPLE_HEAD, show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")  # a fingerprint that is cut short is of no use
    for name, words in loaded.summary():
        facts.add_row(console.plain(name), console.plain(words))
    console.out.print(facts)
    of_signal = loaded.header.signal.get("layers", {})
    by_layer = [name for name in SIGNAL_TITLES if isinstance(of_signal.get(name), list)]
    rows = []
    for i, layer in enumerate(layers):
        figures = [f"{layer[name]:.3f}" for name in columns]
        rows.append((str(i), *figures, *(f"{of_signal[name][i]:.3f}" for name in by_layer)))
    titles = ["layer", "|v|", "|v_pos|", "|v_neg|", "cos(v_pos, v_neg)"]
    titles += [SIGNAL_TITLES[name] for name in by_layer]
    console.out.print(console.table_of("Layers", titles, rows))
    for warning in loaded.header.signal.get("warnings", []):
        console.out.print(f"  ! {warning}", style="yellow")
