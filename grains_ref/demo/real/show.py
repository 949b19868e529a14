"""`grains-ref demo --real`: one behaviour of a released model, diagnosed, steered by several methods, and judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from grains_ref.data import Task, content_digest
from grains_ref.demo.real.behaviours import Behaviour
from grains_ref.demo.real.causes import Recall, places_of, recall
from grains_ref.demo.real.exhibits import write_examples
from grains_ref.demo.real.rows import CONTENT, ROWS, grains_fit
from grains_ref.demo.real.signals import grains_signal
from grains_ref.demo.real.trial import Chosen, Trial, question_of, share_right
from grains_ref.demo.real.verdict import Gains, gains
from grains_ref.demo.real.words import accuracy_by_words
from grains_ref.files import printable, write_whole
from grains_ref.fitting import steering_vectors
from grains_ref.fitting.signal import Signal, with_signal
from grains_ref.grains import eligible_tokens, select
from grains_ref.models import HuggingFaceModel
from grains_ref.report.tokens import coloured_tokens, strongest_tokens
from grains_ref.vectors import SteeringVectors, library_versions

DEMO_ROWS = {  # row of `rows` -> what the demo calls it
    "GrAInS": "GrAInS, paper's setting",
    "GrAInS, content, mean": "GrAInS, own words, mean",
    "GrAInS, content, mean, reversed": "  the same, reversed",
    "random tokens": "random tokens",
    "Gaussian": "Gaussian vectors",
    "CAA": "CAA, all blocks",
    "edit gradient, residual": "edit gradient",
    "edit gradient, reversed": "  the same, reversed",
}
N_EXHIBITS = 2
EXPLAINED = (
    "Right: the chosen answer is the more likely one. Gain: over the model as it is, in points [95 % interval], and of "
    "the mean margin in nats. Kept: controls that are right. Everyday: what right answers to everyday questions gain "
    "or lose, nats per token."
)
NOT_SAID = (
    "One small model, one split, some dozens of test pairs: this says nothing about a model of 8 billion parameters. "
    "All behaviours, methods and three splits: grains-ref reproduce --rung real --all; what came out: docs/real.md."
)


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo has measured."""

    trial: Trial
    undisturbed: float | None  # accuracy without what causes the rejected answer
    by_words: float
    recall: Recall | None
    signals: dict[str, Signal]  # by row
    chosen: dict[str, Chosen]
    gains: dict[str, Gains]


def run(trial: Trial, tick: Callable[[str, int], None]) -> DemoOutcome:
    """Diagnose, steer and measure; every row is one tick."""
    trial.note = lambda what: tick(what, 0)
    trial.note("the model as it is")
    undisturbed = share_right(trial.undisturbed_margins()) if trial.sets.undisturbed else None
    base = trial.unsteered_test
    trial.note("attribution")
    found_causes = recall(trial)
    trial.note("the edit's own gradient")
    signals = {"GrAInS": grains_signal(trial)}
    signals["GrAInS, content, mean"] = grains_signal(trial, aggregation="mean", **CONTENT)
    tick("attribution", 1)
    chosen, measured = {}, {}
    for row in DEMO_ROWS:
        chosen[row] = trial.choose(ROWS[row](trial))
        measured[row] = gains([chosen[row].seen], [base], [trial.sets.subjects])
        tick(row, 1)
    by_words = accuracy_by_words(trial.sets.steer, trial.sets.test)
    return DemoOutcome(trial, undisturbed, by_words, found_causes, signals, chosen, measured)


def show_real_demo(
    load: Callable[[], HuggingFaceModel],
    behaviour: Behaviour,
    seed: int,
    output: Path,
    *,
    as_json: bool,
    out: Console,
    progress: Progress,
) -> None:
    """Run the demo, write its files, print what it found."""
    with progress:
        bar = progress.add_task("loading the model", total=len(DEMO_ROWS) + 1)

        def tick(what: str, finished: int) -> None:
            progress.update(bar, advance=finished, description=f"{what:50}")

        outcome = run(Trial(load(), behaviour, seed), tick)
    content = record(outcome)
    write_whole(output / "report.json", json.dumps(content, indent=2) + "\n")
    best = best_on_dev(outcome)
    write_examples(output, outcome.trial, outcome.chosen[best], name=DEMO_ROWS[best].strip())
    vectors_of(outcome).save(output / "vectors.safetensors")
    if as_json:
        out.print_json(data=content)
        return
    _print_setting(outcome, out)
    _print_attribution(outcome, out)
    out.print(_table(outcome))
    out.print(f"{EXPLAINED}\n", style="dim")
    _print_chosen(outcome, out)
    _print_texts(outcome, out)
    for line in conclusions(outcome):
        out.print(line)
    out.print(f"\n{NOT_SAID}", style="dim")
    out.print(f"\nWritten to {output}/: report.json, examples.json, vectors.safetensors (the paper's setting)")
    out.print(f"Next: grains-ref inspect {output}/vectors.safetensors")


def vectors_of(outcome: DemoOutcome) -> SteeringVectors:
    """GrAInS in the paper's setting, with its signal, ready to be saved."""
    trial = outcome.trial
    hp, fit = grains_fit(trial)
    digest = content_digest(trial.sets.steer)
    vectors = steering_vectors(trial.model, fit, hp, digest, trial.examples, engine=trial.lab.engine)
    return with_signal(vectors, outcome.signals["GrAInS"])


# ------------------------------------------------------------------------------------------- on the screen
def _print_setting(outcome: DemoOutcome, out: Console) -> None:
    trial, sets = outcome.trial, outcome.trial.sets
    out.print(f"\n{trial.behaviour.title}", style="bold")
    example = sets.test[0]
    out.print(f"  asked:    {question_of(example)}")
    out.print(f"  chosen:   {one_line(example.chosen)}")
    out.print(f"  rejected: {one_line(example.rejected)}")
    out.print(
        f"\n{trial.model.name}: chosen is the more likely answer in "
        f"{percent(share_right(trial.unsteered_test.margins))} of {len(sets.test)} test pairs",
        end="",
    )
    if outcome.undisturbed is not None:
        out.print(f"; without the lie in {percent(outcome.undisturbed)}", end="")
    controls_right = percent(share_right(trial.unsteered_test.controls))
    out.print(f".\nControls ({trial.behaviour.control}): ", end="")
    out.print(f"{controls_right} of {len(sets.test_controls)} are right.", end=" ")
    out.print(f"Words alone tell chosen from rejected in {percent(outcome.by_words)}.")


def _print_attribution(outcome: DemoOutcome, out: Console) -> None:
    trial = outcome.trial
    k = trial.lab.paper.k
    out.print("\nWhich tokens push?", style="bold", end="")
    out.print(f"  Green toward chosen, red toward rejected; the {k} strongest of each sign are underlined.")
    for i in range(N_EXHIBITS):
        encoded, a = trial.lab.example(i).encoded, trial.lab.scores(trial.lab.paper, i)
        selection = select(a, k=k, eligible=eligible_tokens(encoded, ()))
        cause = places_of(encoded, trial.sets.causes[i]) if trial.sets.causes else set()
        first_word = encoded.kinds.index("text")
        hidden = {j for j in range(first_word) if j not in (*selection.pos, *selection.neg)}
        marks = dict.fromkeys(cause, "the lie")
        out.print(coloured_tokens(encoded.tokens, a, selection, marks, hidden=hidden))
        out.print(strongest_tokens(encoded.tokens, a, selection) + "\n")
    if outcome.recall:
        r = outcome.recall
        out.print(
            f"The told value is among the 3 most negative tokens in {r.among_all} of {r.n} steering prompts; among the "
            f"user's own words in {r.among_content} of {r.n} (at random: {percent(r.by_chance)})."
        )
    for row, signal in outcome.signals.items():
        out.print(f"{DEMO_ROWS[row]}.", style="bold", end=" ")
        out.print(f"Signal: {signal.line()}")
        for warning in signal.warnings():
            out.print(f"  {warning}", style="yellow")


def _table(outcome: DemoOutcome) -> Table:
    """At most 80 columns wide."""
    table = Table(title="What does steering change?", title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("", no_wrap=True)
    for name in ("right", "gain", "nats", "kept", "everyday", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    base = outcome.trial.unsteered_test
    table.add_row("unsteered", percent(share_right(base.margins)), "", "", percent(share_right(base.controls)))
    for row, name in DEMO_ROWS.items():
        of_row = outcome.gains[row]
        table.add_row(
            name,
            percent(of_row.accuracy.value),
            f"{100 * of_row.gain.value:+.0f} [{100 * of_row.gain.low:+.0f}, {100 * of_row.gain.high:+.0f}]",
            f"{of_row.margin.value:+.1f}",
            percent(of_row.controls.value),
            f"{of_row.everyday.value:+.2f}",
            of_row.verdict if outcome.chosen[row].best.strength else "not used",
        )
    return table


def _print_chosen(outcome: DemoOutcome, out: Console) -> None:
    """The strengths, and by which rule."""
    strengths = [f"{name.strip()} {outcome.chosen[row].best.strength:g}" for row, name in DEMO_ROWS.items()]
    out.print(
        "Strengths were chosen on other pairs, where everyday answers may lose 0.1 nats per token and one control of "
        f"8: {'; '.join(strengths)}.\n"
    )


def _print_texts(outcome: DemoOutcome, out: Console) -> None:
    """What the model says, as it is and steered by the row that was best on dev."""
    row = best_on_dev(outcome)
    strength = outcome.chosen[row].best.strength
    out.print(f"What it says: as it is, and steered by {DEMO_ROWS[row].strip()} at {strength:g}", style="bold")
    before, after = outcome.trial.unsteered_test.texts, outcome.chosen[row].seen.texts
    for asked, plain, steered in zip(outcome.trial.shown, before, after, strict=True):
        if isinstance(asked, Task):
            label = "everyday"
        else:
            label = "control" if asked in outcome.trial.sets.test_controls else "test"
        out.print(Text(f"{label + ':':9} {question_of(asked)}", style="cyan"))
        out.print(f"   as it is: {one_line(plain)}\n   steered:  {one_line(steered)}")
    out.print("")


def conclusions(outcome: DemoOutcome) -> list[str]:
    """The verdict in words."""
    paper, best = outcome.gains["GrAInS"], best_on_dev(outcome)
    strength = outcome.chosen["GrAInS"].best.strength
    lines = ["Verdict"]
    if strength:
        lines.append(f"- GrAInS in the paper's setting: {paper.verdict}. {in_words(paper)}.")
    else:
        lines.append("- GrAInS in the paper's setting: no strength was better on dev than none.")
    of_best = outcome.gains[best]
    lines.append(f"- Best on dev, {DEMO_ROWS[best].strip()}: {of_best.verdict}. {in_words(of_best)}.")
    return lines


def in_words(of_row: Gains) -> str:
    """Gain and price in one sentence."""
    gain = of_row.gain
    return (
        f"{100 * gain.value:+.0f} points [{100 * gain.low:+.0f}, {100 * gain.high:+.0f}], controls "
        f"{100 * of_row.controls_gain.value:+.0f} points, everyday answers {of_row.everyday.value:+.2f} nats per token"
    )


def best_on_dev(outcome: DemoOutcome) -> str:
    """The row that was best on dev, by the rule that chooses strengths."""
    return max(DEMO_ROWS, key=lambda row: (outcome.chosen[row].best.accuracy, outcome.chosen[row].best.margin))


def one_line(text: str) -> str:
    """A text of several lines in one."""
    return printable(" / ".join(line.strip() for line in text.splitlines() if line.strip()))


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %"


# ------------------------------------------------------------------------------------------- the record
def record(outcome: DemoOutcome) -> dict[str, Any]:
    """What `report.json` holds; shares, not percentages."""
    trial = outcome.trial
    base = trial.unsteered_test
    return {
        "model": trial.model.name,
        "behaviour": trial.behaviour.name,
        "split": trial.seed,
        "pairs": {name: len(getattr(trial.sets, name)) for name in ("steer", "dev", "test", "test_controls")},
        "unsteered": {"right": share_right(base.margins), "controls": share_right(base.controls)},
        "without_the_cause": outcome.undisturbed,
        "by_words_alone": outcome.by_words,
        "causes_found": asdict(outcome.recall) if outcome.recall else None,
        "signal": {row: signal.record() for row, signal in outcome.signals.items()},
        "rows": [_row_record(outcome, row) for row in DEMO_ROWS],
        "texts": _texts_record(outcome),
        "versions": library_versions(),
    }


def _row_record(outcome: DemoOutcome, row: str) -> dict[str, Any]:
    chosen, of_row = outcome.chosen[row], outcome.gains[row]
    figures = {name: [rate.value, rate.low, rate.high] for name, rate in vars(of_row).items()}
    tried = [[t.label, t.strength, t.accuracy, t.margin, share_right(t.controls), t.everyday] for t in chosen.tried]
    return {"row": row, "strength": chosen.best.strength, "verdict": of_row.verdict, **figures, "tried": tried}


def _texts_record(outcome: DemoOutcome) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    of_rows: Sequence[tuple[str, Sequence[str]]] = [
        ("unsteered", outcome.trial.unsteered_test.texts),
        *((row, chosen.seen.texts) for row, chosen in outcome.chosen.items()),
    ]
    for i, asked in enumerate(outcome.trial.shown):
        rows.append({"asked": question_of(asked), **{name: texts[i] for name, texts in of_rows}})
    return rows
