"""The report of a folder: of the vectors files in it, and of what the commands' `--json` and the demos wrote there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from grains_ref.data.images import PictureError, read_picture
from grains_ref.evaluation.metrics import McNemar, Rate
from grains_ref.files import FileError, parse_json, printable, read_whole
from grains_ref.report.answers import Answer, Answers, Margin, Margins
from grains_ref.report.attributions import Attributed, Attributions
from grains_ref.report.layers import Layers
from grains_ref.report.page import Report, Section
from grains_ref.report.prose import Prose
from grains_ref.report.provenance import Provenance, facts_of
from grains_ref.report.side_effects import SideEffectsTable
from grains_ref.report.strengths import Comparison, Measure, Method, Rates, Strength, Strengths
from grains_ref.vectors import SteeringVectors, VectorError

EXAMPLES = "examples.json"  # what a demo keeps to look at: attributions, answers, margins
WRONG_SHAPE = (KeyError, TypeError, ValueError, AttributeError, IndexError)  # what reading a foreign record raises
Records = Mapping[str, Any]


def folder_report(folder: Path, *, command: str = "", title: str = "", lead: str = "") -> tuple[Report, list[str]]:
    """A report of everything in a folder that is known here, and what was left out with the reason.

    Files are read in alphabetical order, vectors files last.  Pictures are read only from inside of the folder.

    Raises:
        FileError: it is no folder, or nothing in it is known.
    """
    if not folder.is_dir():
        raise FileError(f"{folder} is no folder; name one with vectors files, or with what --json printed")
    sections: list[Section] = []
    facts: list[tuple[str, str]] = []
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                sections += of_record(parse_json(read_whole(path)), folder)
            elif path.name == "tables.md":
                sections.append(tables_of(folder))
        except (FileError, *WRONG_SHAPE) as error:
            left_out.append(f"{path.name}: {_reason(error)}")
    of_vectors = sorted(folder.glob("*.safetensors"))
    for path in of_vectors:
        try:
            vectors = SteeringVectors.load(path)
        except (FileError, VectorError) as error:
            left_out.append(f"{path.name}: {_reason(error)}")
            continue
        if chosen := of_choice(vectors):
            sections.append(chosen)
        sections.append(Layers(vectors, title=f"Layers of {path.name}" if len(of_vectors) > 1 else "Layers"))
        facts += [("vectors", path.name), *facts_of(vectors)]
    if not sections:
        reasons = "".join(f"\n  {reason}" for reason in left_out)
        raise FileError(
            f"{folder} holds nothing to report: no vectors file, no reproduction, no JSON of attribute, sweep, eval or "
            f"generate (--json > {folder}/NAME.json){reasons}"
        )
    if facts or command:
        facts += [("left out", reason) for reason in left_out]
        sections.append(Provenance(facts, command))
    return Report(title or f"Report of {folder.resolve().name}", sections, lead), left_out


def _reason(error: Exception) -> str:
    """In one line; a missing key says which."""
    words = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return printable(words)[:300]


def of_record(record: Any, folder: Path) -> list[Section]:
    """The sections of what a command printed with `--json`, told by its keys; none for what is not known here.

    folder: from which pictures are read.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: it is not what such a command prints.
    """
    if isinstance(record, list):
        first = record[0] if record and isinstance(record[0], dict) else {}
        if {"prompt", "unsteered", "steered"} <= first.keys():
            return [Answers([Answer(str(r["prompt"]), str(r["unsteered"]), str(r["steered"])) for r in record])]
        return []
    if not isinstance(record, dict):
        return []
    for keys, read in READERS:
        if keys <= record.keys():
            return list(read(record, folder))
    return []


def _attribution(record: Records, folder: Path) -> Iterator[Section]:
    yield Attributions([Attributed.from_record(record, _picture(record.get("image"), folder))])


def _examples(record: Records, folder: Path) -> Iterator[Section]:
    """What a demo keeps to look at."""
    examples = []
    for attributed in record["attributions"]:
        examples.append(Attributed.from_record(attributed, _picture(attributed.get("image"), folder)))
    if examples:
        yield Attributions(examples, marks=str(record.get("marks", "")))
    how = str(record.get("how", ""))
    if answers := [Answer(**{name: str(text) for name, text in answer.items()}) for answer in record["answers"]]:
        yield Answers(answers, how=how)
    if margins := [Margin(str(name), float(before), float(after)) for name, before, after in record["margins"]]:
        yield Margins(margins, how=how)


def _evaluation(record: Records, folder: Path) -> Iterator[Section]:
    steered, changes = record.get("steered", {}), record.get("change", {})
    measures = [
        Measure(
            name=str(name),
            unsteered=Rate(**unsteered),
            steered=Rate(**steered[name]) if name in steered else None,
            change=McNemar(**changes[name]) if name in changes else None,
        )
        for name, unsteered in record["unsteered"].items()
    ]
    if measures:
        yield Rates(measures)
    if "side_effects" in record:
        yield from _side_effects(record, folder)


def _side_effects(record: Records, folder: Path) -> Iterator[Section]:
    from grains_ref.evaluation.side_effect_measures import SideEffects

    yield SideEffectsTable(SideEffects.from_record(record["side_effects"]))


def of_sweep(record: Records) -> Strengths:
    """What `grains-ref sweep --json` prints.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    best = record["best"]
    names = ("lam", "k", "aggregation", "layers")
    tried = [
        Strength(
            setting=setting_name(tried),
            lam=float(tried["lam"]),
            accuracy=float(tried["dev_accuracy"]),
            task_accuracy=tried.get("task_accuracy"),
            is_at_most=bool(tried.get("task_accuracy_is_at_most", False)),
            is_chosen=all(tried[name] == best[name] for name in names),
        )
        for tried in record["tried"]
    ]
    return Strengths(
        tried,
        n_dev=int(best["dev_pairs"]),
        n_tasks=int(best.get("tasks", 0)),
        unsteered_tasks=best.get("task_accuracy_unsteered"),
        max_loss=best.get("max_loss"),
    )


def setting_name(setting: Records) -> str:
    """A setting of a sweep beside its strength, in words."""
    if setting["lam"] == 0:
        return "unsteered"
    parts = [f"k {setting['k']}" if setting["k"] else "", setting["aggregation"], f"layers {setting['layers']}"]
    return ", ".join(str(part) for part in parts if part)


def of_choice(vectors: SteeringVectors) -> Strengths | None:
    """The curve that a sweep stored in a vectors file; None where there is none."""
    choice = vectors.header.choice
    if not choice.get("dev_curve"):
        return None
    lam = float(choice["lam"])
    tried = []
    for strength, accuracy in choice["dev_curve"]:
        is_chosen = strength == lam
        task_accuracy = choice.get("task_accuracy") if is_chosen else None
        if strength == 0 and not is_chosen:
            task_accuracy = choice.get("task_accuracy_unsteered")
        name = "the chosen vectors and layers" if strength else "unsteered"
        tried.append(Strength(name, float(strength), float(accuracy), task_accuracy, is_chosen=is_chosen))
    return Strengths(
        tried,
        n_dev=int(choice.get("dev_pairs", 0)),
        n_tasks=int(choice.get("tasks", 0)),
        unsteered_tasks=choice.get("task_accuracy_unsteered"),
        max_loss=choice.get("max_loss"),
    )


def _sweep(record: Records, folder: Path) -> Iterator[Section]:
    yield of_sweep(record)


def _demo(record: Records, folder: Path) -> Iterator[Section]:
    """A demo's `report.json`."""
    names = ("accuracy", "gain")
    methods = [
        Method(
            name=str(row["row"]),
            **{name: Rate(**row[name]) for name in names},
            rejected=float(row["rejected_rate"]),
            capability=float(row["capability"]),
            loss=float(row["capability_loss"]),
            chosen=str(row["chosen"]),
        )
        for row in record["rows"]
    ]
    seeds = ", ".join(str(seed) for seed in record["training_seeds"])
    limit = float(record["max_capability_loss"])
    of_seeds = f"means over training seeds {seeds}" if len(record["training_seeds"]) > 1 else f"training seed {seeds}"
    how = f"World {record['world']}, {of_seeds}; intervals over facts."
    yield Comparison(methods, max_loss=limit, how=how)
    first = record["per_seed"][0]
    of_rows = [row for row in first["rows"] if row["row"] == "chosen on dev"]
    if of_rows:
        (row,) = of_rows[:1]
        tried = [
            Strength(
                setting=str(tried["setting"]),
                lam=float(tried["lam"]),
                accuracy=float(tried["dev_accuracy"]),
                is_chosen=tried["setting"] == row["setting"] and tried["lam"] == row["lam"],
            )
            for tried in row["tried"]
        ]
        words = (
            f"Training seed {first['seed']}. Of these settings the one with the highest accuracy was chosen among "
            f"those that lose at most {limit:g} points of the dev tasks."
        )
        yield Strengths(tried, limit_words=words)


def _real_demo(record: Records, folder: Path) -> Iterator[Section]:
    """The `report.json` of a demo on a released model: its table of methods."""
    unsteered, pairs = record["unsteered"], record["pairs"]
    text = [
        f"Model {record['model']}, behaviour {record['behaviour']}, split {int(record['split'])}: "
        f"{int(pairs['steer'])} steering pairs, {int(pairs['dev'])} to choose a strength on, {int(pairs['test'])} test "
        f"pairs and {int(pairs['test_controls'])} controls. Intervals are over subjects, at 95 %. A strength of 0 is "
        "the unsteered model: no other was better on dev within the limits.",
        "",
        "| row | strength | right | gain, points | margin, nats | controls right | everyday, nats | verdict |",
        "|---|---|---|---|---|---|---|---|",
        f"| unsteered | | {100 * unsteered['right']:.0f} % | | | {100 * unsteered['controls']:.0f} % | | |",
    ]
    for row in record["rows"]:
        cells = [
            str(row["row"]).replace("|", "/"),
            f"{float(row['strength']):g}",
            f"{100 * row['accuracy'][0]:.0f} %",
            "{:+.0f} [{:+.0f}, {:+.0f}]".format(*(100 * float(share) for share in row["gain"])),
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["margin"]),
            f"{100 * row['controls'][0]:.0f} %",
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["everyday"]),
            str(row["verdict"]).replace("|", "/") if row["strength"] else "never chosen",
        ]
        text.append(f"| {' | '.join(cells)} |")
    yield Prose("\n".join(text), title="Methods")


def tables_of(folder: Path) -> Prose:
    """A reproduction's page, with its figures.

    Raises:
        FileError: it is not there.
    """
    figures = {f"{svg.stem}.png": read_whole(svg) for svg in sorted(folder.glob("figure-*.svg"))}
    return Prose(read_whole(folder / "tables.md").decode("utf-8"), figures)


def _picture(name: Any, folder: Path) -> Image.Image | None:
    """The picture of a record, if it lies in the folder: a record from elsewhere gets no other file shown."""
    if not isinstance(name, str) or not name:
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        path = folder / Path(name).name  # the folder may have moved
    if path.is_symlink():
        return None
    try:
        return read_picture(path)
    except PictureError:
        return None


READERS: tuple[tuple[set[str], Callable[[Records, Path], Iterator[Section]]], ...] = (
    ({"tokens", "kinds", "scores_nats"}, _attribution),
    ({"attributions", "answers", "margins"}, _examples),
    ({"best", "tried"}, _sweep),
    ({"rows", "per_seed", "training_seeds"}, _demo),
    ({"rows", "behaviour", "pairs", "unsteered"}, _real_demo),
    ({"unsteered"}, _evaluation),
    ({"side_effects"}, _side_effects),
)
