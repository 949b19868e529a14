"""The command `grains-ref`: fit, look, choose, measure and generate, and a demo that needs nothing.

Results go to standard output, progress and messages to standard error; `--json` prints one JSON object instead of
tables. Exit codes: 0 done, 1 refused or failed with a message, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from grains_ref.cli import console, live, reproduce
from grains_ref.cli.conform import conform
from grains_ref.cli.console import err, guarded, out, progress_bar, table_of
from grains_ref.cli.datasets import datasets

app = typer.Typer(
    name="grains-ref",
    help="GrAInS, the reference implementation: attribute, fit steering vectors, steer, measure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_F = TypeVar("_F", bound=Callable[..., None])
app.add_typer(conform, name="conform")
app.add_typer(datasets, name="datasets")
conform.command()(live.live)
app.command()(reproduce.reproduce)
MANY = 60  # image tokens; of more only the selected ones are printed


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    console.debug = debug


def command(function: _F) -> _F:
    """Register a command whose errors end in one message and an exit code, not a traceback."""
    return app.command(name=function.__name__.strip("_"))(guarded(function))


# ------------------------------------------------------------------------------------- options in common
ModelOption = Annotated[
    str,
    typer.Option("--model", help="A local folder, a hub id, or tiny:NAME for an embedded model.", show_default=False),
]
DtypeOption = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16 or float64.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
DeviceMapOption = Annotated[
    str, typer.Option(help="'auto' spreads the model over several devices (needs accelerate).", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
LayersOption = Annotated[str, typer.Option(help="Layers to steer: 'all', or for instance '8-15,20'.")]
SkipOption = Annotated[bool, typer.Option("--skip-bad-rows", help="Report bad rows and go on without them.")]
PresetOption = Annotated[
    str, typer.Option(help="paper_llm, paper_vlm or paper_gemma. (default: by the model's family)", show_default=False)
]
ImageOption = Annotated[
    Path | None, typer.Option(help="A picture; write <image> in the prompt where it belongs.", show_default=False)
]
EligibleOption = Annotated[
    list[str] | None, typer.Option(help="Narrow the candidates: content, no_special, not_last, text, image.")
]


def where(model: str) -> str:
    """The folder of an embedded tiny model; any other model as it is named.

    Raises:
        ValueError: there is no such embedded model.
    """
    import grains_ref.tiny_models as tiny_models

    if not model.startswith("tiny:"):
        return model
    root = Path(tiny_models.__file__).parent
    path = root / model.removeprefix("tiny:")
    if not (path / "model.safetensors").is_file():
        names = sorted(p.parent.name for p in root.glob("*/model.safetensors"))
        raise ValueError(f"there is no embedded model {model!r}; there are {', '.join('tiny:' + n for n in names)}")
    return str(path)


def _load(model: str, dtype: str, device: str, device_map: str) -> Any:
    """A model by folder, hub id, or the name of an embedded tiny one."""
    path = where(model)
    import transformers

    from grains_ref.models import load

    if path != model:
        transformers.utils.logging.disable_progress_bar()
    with err.status(Text(f"loading {model}")):
        return load(path, dtype=dtype, device=device, device_map=device_map or None)


def _hyper_parameters(preset: str, **given: Any) -> Callable[[Any], Any]:
    """Checks preset and options now; gives the hyper-parameters once the model, whose family may decide, is there."""
    from grains_ref.grains import PRESETS

    if preset and preset not in PRESETS:
        raise ValueError(f"preset {preset!r} does not exist; there are {', '.join(PRESETS)}")
    changes = {name: value for name, value in given.items() if value not in (None, "", [])}
    replace(PRESETS[preset or "paper_llm"], **changes)
    return lambda model: replace(PRESETS[preset or model.family.preset], **changes)


def _parse_layers(text: str, n: int) -> list[int]:
    """'all' or '8-15,20' -> layer numbers."""
    if text == "all":
        return list(range(n))
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"layers {text!r} cannot be read; write 'all' or for instance '8-15,20'")
        layers += range(int(first), int(last or first) + 1)
    if not layers or max(layers) >= n:
        raise ValueError(f"layers {text!r} do not exist: the model has layers 0 to {n - 1}")
    return layers


def _floats(text: str, name: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} {text!r} cannot be read; write numbers with commas, for instance '1,2,4'") from None


def _check_out(path: Path) -> None:
    """Refuse before the work, not after it."""
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--out {path} must be a file in a folder that exists")


def _read_pairs(path: Path, *, skip_bad_rows: bool) -> Any:
    from grains_ref.data import read_pairs

    file = read_pairs(path, skip_bad_rows=skip_bad_rows)
    _report_skipped(file.skipped)
    return file


def _report_skipped(skipped: Sequence[Exception]) -> None:
    if skipped:
        err.print(f"skipped {len(skipped)} bad rows:", style="yellow")
        for problem in skipped[:10]:
            err.print(f"  {problem}")
        if len(skipped) > 10:
            err.print(f"  and {len(skipped) - 10} more")


def _steering(model: Any, vectors: Path, lam: float, layers: str, force: bool) -> Any:
    """Loaded vectors that fit the model, as a context manager."""
    from grains_ref.grains import Steering
    from grains_ref.vectors import SteeringVectors, check_fits

    loaded = SteeringVectors.load(vectors)
    check_fits(
        loaded,
        n_layers=len(model.blocks),
        width=model.width,
        fingerprint=model.fingerprint(),
        model_name=model.name,
        force=force,
    )
    return Steering(model.blocks, loaded.v, lam=lam, layers=_parse_layers(layers, len(model.blocks)))


# ------------------------------------------------------------------------------------- commands
@command
def demo(
    vision: Annotated[bool, typer.Option("--vision", help="Pictures and words instead of words alone.")] = False,
    world: Annotated[str, typer.Option(help="simple: the positive control; graded: harder on purpose.")] = "simple",
    seeds: Annotated[str, typer.Option(help="Training seeds of the embedded models, out of 0, 1, 2.")] = "0,1,2",
    output: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for results. (default: demo_out or demo_vision_out)", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Diagnose, steer and measure tiny models with a planted bad habit. A few minutes; nothing is downloaded."""
    from grains_ref.demo.show import show_text_demo, show_vision_demo

    if world not in ("simple", "graded"):
        raise ValueError(f"world {world!r} does not exist; the planted worlds are simple, graded")
    if not all(part.strip() in ("0", "1", "2") for part in seeds.split(",")):
        raise ValueError(f"--seeds {seeds!r} cannot be read; write training seeds out of 0, 1, 2, for instance '0,1,2'")
    folder = output or Path("demo_vision_out" if vision else "demo_out")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = list(dict.fromkeys(int(part) for part in seeds.split(",")))
    (show_vision_demo if vision else show_text_demo)(world, numbers, folder, as_json=as_json)


@command
def fit(
    model: ModelOption,
    pairs: Annotated[Path, typer.Option(help="Preference pairs, JSONL: prompt or messages, chosen, rejected.")],
    output: Annotated[Path, typer.Option("--out", help="The vectors file to write.")],
    preset: PresetOption = "",
    k: Annotated[int | None, typer.Option(help="Tokens per sign. (from the preset)", show_default=False)] = None,
    m: Annotated[int | None, typer.Option(help="Quadrature steps. (from the preset)", show_default=False)] = None,
    attribution: Annotated[str, typer.Option(help="integrated_gradients, gradient, smoothgrad or random.")] = "",
    aggregation: Annotated[str, typer.Option(help="pca, uncentred, mean or weighted_mean.")] = "",
    objective: Annotated[str, typer.Option(help="preference or likelihood.")] = "",
    path_baseline: Annotated[str, typer.Option(help="zero, mean or token:WORD.")] = "",
    mask_baseline: Annotated[str, typer.Option(help="zero, mean or token:WORD.")] = "",
    eligible: EligibleOption = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for finished examples. (default: OUT.work)", show_default=False)
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    skip_bad_rows: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make steering vectors from preference pairs. Interrupted, the same command goes on where it stopped."""
    from grains_ref.fitting import checked_examples, discard, resumable_fit

    choose_hp = _hyper_parameters(
        preset,
        k=k,
        m=m,
        attribution=attribution,
        aggregation=aggregation,
        objective=objective,
        path_baseline=path_baseline,
        mask_baseline=mask_baseline,
        eligible=tuple(eligible or ()) or None,
    )
    _check_out(output)
    file = _read_pairs(pairs, skip_bad_rows=skip_bad_rows)
    wrapped = _load(model, dtype, device, device_map)
    hp = choose_hp(wrapped)
    kept, examples, skipped = checked_examples(wrapped, file.pairs, skip_bad_rows=skip_bad_rows)
    _report_skipped(skipped)
    folder = work or output.with_name(output.name + ".work")
    with progress_bar() as progress:
        bar = progress.add_task("examples", total=len(examples))
        record = resumable_fit(
            wrapped, kept, examples, hp, work=folder, on_example=lambda n: progress.update(bar, completed=n)
        )
    record.vectors.save(output)
    discard(folder)
    summary = _fit_summary(examples, record, hp) | {
        "vectors": str(output),
        "skipped": len(file.skipped) + len(skipped),
    }
    if as_json:
        out.print_json(data=summary)
        return
    if record.resumed:
        err.print(f"{record.resumed} of {len(examples)} examples had been finished earlier and were not computed again")
    out.print(
        table_of(f"{len(examples)} examples -> {output}", ("", ""), [(a, str(b)) for a, b in summary["words"].items()])
    )
    out.print(f"Next: choose a strength with 'grains-ref sweep', or look with 'grains-ref inspect {output}'.")


def _fit_summary(examples: Sequence[Any], record: Any, hp: Any) -> dict[str, Any]:
    """What was selected, by kind, and how often a set came out short: the reader's check on eq. (3)."""
    counts: dict[str, int] = {}
    last = short = empty = 0
    for example, one in zip(examples, record.shifts, strict=True):
        for tokens in (one.selection.pos, one.selection.neg):
            short += len(tokens) < hp.k
            empty += not tokens
            last += len(one.a) - 1 in tokens
            for j in tokens:
                counts[example.encoded.kinds[j]] = counts.get(example.encoded.kinds[j], 0) + 1
    total = sum(counts.values())
    words = {f"selected tokens that are {kind}": f"{n} of {total}" for kind, n in sorted(counts.items())}
    words["sets that hold the last prompt token"] = f"{last} of {2 * len(examples)}"
    words[f"sets with fewer than k = {hp.k} tokens"] = f"{short} of {2 * len(examples)} ({empty} empty)"
    for side, aggregation in (("v_pos", record.fit.pos), ("v_neg", record.fit.neg)):
        low = min(aggregation.cos_mean)
        words[f"{side}: cosine with the mean shift, lowest layer"] = (
            f"{low:.2f} (layer {aggregation.cos_mean.index(low)})"
        )
    return {
        "examples": len(examples),
        "resumed": record.resumed,
        "hyper_parameters": asdict(hp) | {"eligible": list(hp.eligible)},
        "selected_by_kind": counts,
        "sets_with_last_token": last,
        "short_sets": short,
        "empty_sets": empty,
        "words": words,
    }


@command
def attribute(
    model: ModelOption,
    prompt: Annotated[str, typer.Option(help="The prompt, as plain text.", show_default=False)],
    chosen: Annotated[str, typer.Option(help="The preferred response.", show_default=False)],
    rejected: Annotated[str, typer.Option(help="The other response.", show_default=False)],
    image: ImageOption = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Draw the scores on the picture: a PNG to write.", show_default=False)
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt through the model's chat template.")] = False,
    preset: PresetOption = "",
    k: Annotated[int | None, typer.Option(help="Tokens per sign. (from the preset)", show_default=False)] = None,
    m: Annotated[int | None, typer.Option(help="Quadrature steps. (from the preset)", show_default=False)] = None,
    method: Annotated[str, typer.Option(help="integrated_gradients, gradient, smoothgrad or random.")] = "",
    path_baseline: Annotated[str, typer.Option(help="zero, mean or token:WORD.")] = "",
    eligible: EligibleOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    as_json: JsonOption = False,
) -> None:
    """Which tokens of one prompt, words or image patches, push the model toward the chosen or the rejected response?"""
    from grains_ref.grains import attribute as attribute_example
    from grains_ref.grains import eligible_tokens, select
    from grains_ref.report.tokens import coloured_tokens, named_tokens, strongest_tokens

    if overlay and not image:
        raise ValueError("--overlay draws on a picture; give one with --image")
    if overlay:
        _check_out(overlay)
    rules = tuple(eligible or ()) or None
    choose_hp = _hyper_parameters(preset, k=k, m=m, attribution=method, path_baseline=path_baseline, eligible=rules)
    wrapped = _load(model, dtype, device, device_map)
    hp = choose_hp(wrapped)
    example = wrapped.example([{"role": "user", "content": prompt}] if chat else prompt, chosen, rejected, image)
    attribution = attribute_example(wrapped, example, hp)
    tokens, a = named_tokens(example.encoded), attribution.a
    selection = select(a, k=hp.k, eligible=eligible_tokens(example.encoded, hp.eligible))
    if overlay and image:
        from grains_ref.images import read_picture
        from grains_ref.report.overlay import Panel, overlay_figure

        panel = Panel("", example.encoded.patches, a.tolist(), selection.pos, selection.neg)
        overlay_figure(overlay, read_picture(image), [panel], title=f"{chosen}  rather than  {rejected}")
    if as_json:
        out.print_json(
            data={
                "tokens": list(example.encoded.tokens),
                "kinds": list(example.encoded.kinds),
                "patches": [patch and patch._asdict() for patch in getattr(example.encoded, "patches", ())],
                "scores_nats": a.tolist(),
                "positive": list(selection.pos),
                "negative": list(selection.neg),
                "preference_nats": attribution.f_x,
                "completeness_gap_nats": attribution.gap,
                "hyper_parameters": asdict(hp) | {"eligible": list(hp.eligible)},
            }
        )
        return
    image_tokens = [j for j, kind in enumerate(example.encoded.kinds) if kind == "image"]
    hidden = set(image_tokens) - {*selection.pos, *selection.neg} if len(image_tokens) > MANY else set()
    out.print(coloured_tokens(tokens, a, selection, {}, hidden=hidden))
    out.print(strongest_tokens(tokens, a, selection))
    if image_tokens:
        total = f"{len(image_tokens)} image tokens {a[image_tokens].sum():+.2f}, all others "
        out.print(f"Sums: {total}{a.sum() - a[image_tokens].sum():+.2f} nats.")
    if overlay:
        out.print(f"The picture with its scores: {overlay}")
    out.print(
        f"f(x) = {attribution.f_x:+.2f} nats: the model prefers the {'chosen' if attribution.f_x > 0 else 'rejected'} "
        f"response. Completeness gap {attribution.gap:+.2f} nats: of the quadrature with m = {hp.m}, not an error."
    )


@command
def sweep(
    model: ModelOption,
    pairs: Annotated[Path, typer.Option(help="Pairs to make vectors from (JSONL).")],
    dev: Annotated[Path, typer.Option(help="Other pairs to choose the setting on (JSONL).")],
    tasks: Annotated[
        Path | None, typer.Option(help="Tasks that must not suffer (JSONL: prompt, answer).", show_default=False)
    ] = None,
    max_loss: Annotated[float, typer.Option(help="Largest loss of task accuracy allowed on dev, in points.")] = 0.5,
    lam: Annotated[str, typer.Option(help="Strengths.")] = "0.4,0.63,1,1.6,2.5,4,6.3,10",
    ks: Annotated[str, typer.Option("--k", help="Tokens per sign. (from the preset)", show_default=False)] = "",
    layers: Annotated[list[str] | None, typer.Option(help="Layer sets, one per option; default all.")] = None,
    aggregation: Annotated[list[str] | None, typer.Option(help="Aggregations, one per option; default pca.")] = None,
    eligible: EligibleOption = None,
    preset: PresetOption = "",
    output: Annotated[
        Path | None, typer.Option("--out", help="Write the chosen vectors here.", show_default=False)
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    skip_bad_rows: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Choose strength, k, layers and aggregation on dev data, under a limit on what the tasks may lose."""
    from grains_ref.data import content_digest, picture_bytes, read_tasks
    from grains_ref.evaluation.choice import allowed_errors, choose, keeps_capability
    from grains_ref.evaluation.measures import exact_matches, pair_rows, row_margins, task_rows
    from grains_ref.fitting import checked_examples, steering_vectors
    from grains_ref.grains import Steering, shift, vectors
    from grains_ref.grains import attribute as attribute_example

    lams = [0.0, *(value for value in _floats(lam, "lam") if value)]
    if ks and not all(value.is_integer() for value in _floats(ks, "k")):
        raise ValueError(f"--k {ks!r} cannot be read; write whole numbers with commas, for instance '1,3,5'")
    sizes: list[int | None] = [int(value) for value in _floats(ks, "k")] if ks else [None]
    if output:
        _check_out(output)
    rules = tuple(eligible or ()) or None
    choices = [
        _hyper_parameters(preset, k=size, aggregation=name, eligible=rules)
        for size in sizes
        for name in aggregation or ["pca"]
    ]
    fit_file, dev_file = (_read_pairs(path, skip_bad_rows=skip_bad_rows) for path in (pairs, dev))
    seen = [{(repr(p.prompt), picture_bytes(p)) for p in file.pairs} for file in (fit_file, dev_file)]
    if shared := len(seen[0] & seen[1]):
        raise ValueError(f"{shared} prompts are in both {pairs} and {dev}; choosing on them would flatter the vectors")
    wrapped = _load(model, dtype, device, device_map)
    hps = [choose_hp(wrapped) for choose_hp in choices]
    layer_sets = {text: _parse_layers(text, len(wrapped.blocks)) for text in layers or ["all"]}
    kept, examples, skipped = checked_examples(wrapped, fit_file.pairs, skip_bad_rows=skip_bad_rows)
    _report_skipped(skipped)
    dev_rows = pair_rows(wrapped, dev_file.pairs)
    rows = task_rows(wrapped, read_tasks(tasks)) if tasks else []
    allowed = allowed_errors(exact_matches(wrapped, rows), max_loss=max_loss)

    with progress_bar() as progress:
        bar = progress.add_task("attribution", total=len(examples))
        scores = []
        for example in examples:
            scores.append(attribute_example(wrapped, example, hps[0]).a)
            progress.advance(bar)
        fits = {
            (hp.k, hp.aggregation): vectors(
                [shift(wrapped, example, a, hp) for example, a in zip(examples, scores, strict=True)], hp
            )
            for hp in hps
        }
        settings = [(strength, *key, text) for strength in sorted(lams, key=abs) for key in fits for text in layer_sets]
        bar = progress.add_task("dev", total=len(settings))

        def steered(setting: tuple[float, int, str, str]) -> Steering:
            strength, size, name, text = setting
            return Steering(wrapped.blocks, fits[size, name].v, lam=strength, layers=layer_sets[text])

        def accuracy(setting: tuple[float, int, str, str]) -> float:
            progress.advance(bar)
            with steered(setting):
                return sum(margin > 0 for margin in row_margins(wrapped, dev_rows)) / len(dev_file.pairs)

        def admissible(setting: tuple[float, int, str, str]) -> bool:
            with steered(setting):
                return keeps_capability(wrapped, rows, allowed=allowed)

        choice = choose(settings, accuracy=accuracy, admissible=admissible)
    strength, size, name, text = choice.best
    if output:
        hp = next(hp for hp in hps if (hp.k, hp.aggregation) == (size, name))
        steering_vectors(wrapped, fits[size, name], hp, content_digest(kept), len(kept)).save(output)
    best = {"lam": strength, "k": size, "aggregation": name, "layers": text}
    measured = [(tried.setting, tried.accuracy) for tried in choice.tried]
    if as_json:
        keys = ("lam", "k", "aggregation", "layers")
        tried = [dict(zip(keys, setting, strict=True)) | {"dev_accuracy": value} for setting, value in measured]
        out.print_json(data={"best": best, "tried": tried})
        return
    table_rows = [
        (
            ("* " if setting == choice.best else "  ") + f"k {setting[1]}, {setting[2]}, layers {setting[3]}",
            f"{setting[0]:g}",
            f"{100 * value:.1f} %",
        )
        for setting, value in sorted(measured, key=lambda one: (one[0][1:], one[0][0]))
    ]
    out.print(
        table_of(
            f"Accuracy on {dev} ({len(dev_file.pairs)} pairs); * is chosen", ("setting", "lam", "accuracy"), table_rows
        )
    )
    if not tasks:
        out.print("No --tasks were given, so nothing stops a strength that ruins other skills.", style="yellow")
    if not strength:
        out.print("No steered setting beat the unsteered model within the limit: lam = 0 was chosen.", style="yellow")
    elif output:
        out.print(
            f"Next: grains-ref eval --model {model} --vectors {output} --lam {strength:g} --layers {text} --pairs TEST"
        )


@command
def eval_(
    model: ModelOption,
    pairs: Annotated[
        Path, typer.Option(help="Held-out pairs (JSONL); 'choices' and 'label' also give multiple choice.")
    ],
    vectors: Annotated[Path | None, typer.Option(help="A vectors file; without it, the plain model.")] = None,
    lam: Annotated[float | None, typer.Option(help="Strength.", show_default=False)] = None,
    layers: LayersOption = "all",
    tasks: Annotated[Path | None, typer.Option(help="Tasks that must not suffer (JSONL: prompt, answer).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Accept vectors of a model with another fingerprint.")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    skip_bad_rows: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """Preference accuracy (and multiple choice, and tasks), unsteered beside steered."""
    from contextlib import nullcontext

    from grains_ref.data import read_tasks
    from grains_ref.evaluation.measures import capability, multiple_choice_accuracy, preference_accuracy
    from grains_ref.evaluation.metrics import Rate

    if (vectors is None) != (lam is None):
        raise ValueError("--vectors and --lam belong together: give both to steer, or neither")
    file = _read_pairs(pairs, skip_bad_rows=skip_bad_rows)
    task_list = read_tasks(tasks) if tasks else ()
    wrapped = _load(model, dtype, device, device_map)
    ways: dict[str, Any] = {"unsteered": nullcontext()}
    if vectors is not None and lam is not None:
        ways["steered"] = _steering(wrapped, vectors, lam, layers, force)
    figures: dict[str, dict[str, Rate]] = {}
    for way, context in ways.items():
        with err.status(f"scoring, {way}"), context:
            figures[way] = {"preference accuracy": preference_accuracy(wrapped, file.pairs)}
            if all(pair.choices for pair in file.pairs):
                figures[way]["multiple-choice accuracy"] = multiple_choice_accuracy(wrapped, file.pairs)
            if task_list:
                figures[way]["task accuracy"] = capability(wrapped, task_list)
    if as_json:
        out.print_json(
            data={way: {name: asdict(value) for name, value in rates.items()} for way, rates in figures.items()}
        )
        return
    measures = list(figures["unsteered"])
    rows = [(measure, *(str(figures[way][measure]) for way in figures)) for measure in measures]
    out.print(table_of(f"{pairs}: {len(file.pairs)} pairs; 95 % intervals", ("", *figures), rows))


@command
def generate(
    model: ModelOption,
    prompt: Annotated[list[str], typer.Option(help="A prompt; may be given several times.", show_default=False)],
    vectors: Annotated[Path, typer.Option(help="A vectors file.", show_default=False)],
    lam: Annotated[float, typer.Option(help="Strength.", show_default=False)],
    layers: LayersOption = "all",
    image: Annotated[
        list[Path] | None,
        typer.Option(help="A picture for every prompt, or one for all of them.", show_default=False),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt through the model's chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the continuation.")] = 64,
    force: Annotated[bool, typer.Option("--force", help="Accept vectors of a model with another fingerprint.")] = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    as_json: JsonOption = False,
) -> None:
    """Continue prompts greedily, unsteered beside steered."""
    images = list(image or []) * (len(prompt) if image and len(image) == 1 else 1)
    if images and len(images) != len(prompt):
        raise ValueError(f"{len(prompt)} prompts and {len(images)} pictures; give one --image per --prompt, or one")
    wrapped = _load(model, dtype, device, device_map)
    prompts = [[{"role": "user", "content": one}] if chat else one for one in prompt]
    steering = _steering(wrapped, vectors, lam, layers, force)  # refuses other vectors before the work
    base = wrapped.generate(prompts, images=images, max_new_tokens=max_new_tokens)
    with steering:
        steered = wrapped.generate(prompts, images=images, max_new_tokens=max_new_tokens)
    if as_json:
        rows = zip(prompt, base, steered, strict=True)
        out.print_json(data=[{"prompt": p, "unsteered": b, "steered": s} for p, b, s in rows])
        return
    table = Table(show_lines=True)
    for name in ("prompt", "unsteered", f"steered, lam {lam:g}"):
        table.add_column(name)
    for row in zip(prompt, base, steered, strict=True):
        table.add_row(*row)
    out.print(table)


@command
def inspect(
    vectors: Annotated[Path, typer.Argument(help="A vectors file.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Say in words what a vectors file holds."""
    from grains_ref.vectors import SteeringVectors

    loaded = SteeringVectors.load(vectors)
    norms = [dict(zip(("v", "v_pos", "v_neg", "cos"), row, strict=True)) for row in loaded.norms()]
    if as_json:
        layers = [{name: None if math.isnan(value) else value for name, value in row.items()} for row in norms]
        out.print_json(data={"header": json.loads(loaded.header.to_json()), "layers": layers})
        return
    facts = Table(title=str(vectors), title_justify="left", box=SIMPLE_HEAD, show_header=False)
    facts.add_column()
    facts.add_column(overflow="fold")  # a fingerprint that is cut short is of no use
    for row in loaded.summary():
        facts.add_row(*row)
    out.print(facts)
    rows = [(str(i), *(f"{n[key]:.3f}" for key in ("v", "v_pos", "v_neg", "cos"))) for i, n in enumerate(norms)]
    out.print(table_of("Layers", ("layer", "|v|", "|v_pos|", "|v_neg|", "cos(v_pos, v_neg)"), rows))


def main() -> None:
    """The entry point of the command `grains-ref`."""
    app()
