"""`grains-ref datasets`: what the paper's datasets are, what is here, and their preference pairs as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from grains_ref.cli.console import err, guarded, out

PARTS = ("steering", "dev", "test")
datasets = typer.Typer(
    help="The paper's datasets: what they are, and preference pairs from them.", no_args_is_help=True
)


@datasets.command(name="list")
@guarded
def list_(
    source: Annotated[
        Path | None, typer.Option(help="A folder with one folder per dataset (truthfulqa/, toxigen/, ...).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Rows, licence and place of every dataset, and whether it can be read here. Downloads nothing."""
    from grains_ref.datasets.registry import DATASETS, available  # imported late, as it is not quick

    states = {name: available(name, source / name if source else "") for name in DATASETS}
    if as_json:
        rows = {name: {"available": state.is_available, "why": state.why} for name, state in states.items()}
        print(json.dumps(rows, indent=1))
        return
    for name, dataset in DATASETS.items():
        state = states[name]
        out.print(str(dataset), soft_wrap=True)  # a command broken into two lines cannot be copied
        out.print(f"  {'here' if state.is_available else 'not here'}: {state.why}\n", soft_wrap=True)


@datasets.command()
@guarded
def pairs(
    name: Annotated[str, typer.Argument(help="A dataset that gives pairs, for instance truthfulqa.")],
    output: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    source: Annotated[
        str, typer.Option(help="A folder, a hub id, or 'fixture' for the miniature. (default: the hub)")
    ] = "",
    part: Annotated[str, typer.Option(help="steering, dev or test.")] = "steering",
    recipe: Annotated[
        str, typer.Option(help="How a pair is made, where there are several ways; `datasets list` names them.")
    ] = "",
    split: Annotated[
        str, typer.Option(help="paper, or release: as the released code, which LEAKS test rows.")
    ] = "paper",
    n: Annotated[int, typer.Option("-n", help="Examples for steering.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn for a pair.")] = 0,
    policy: Annotated[
        str, typer.Option(help="Which false answer is rejected, where there are several: random or first.")
    ] = "random",
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Report bad rows and go on without them.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain prompts instead of messages for a chat template.")
    ] = False,
) -> None:
    """Write preference pairs of one part of a split; the split's sizes and digests go beside the file, as .split.json.

    Pictures that come inside the data are written to the folder pictures/ beside the file.
    """
    from grains_ref.datasets.dataset import PairOptions
    from grains_ref.datasets.pair_files import write_pairs
    from grains_ref.datasets.records import make_records
    from grains_ref.datasets.registry import find, fixture, pair_rows
    from grains_ref.datasets.rejection_policy import named
    from grains_ref.files import check_target, write_whole

    check_target(output)
    if part not in PARTS:
        raise ValueError(f"--part {part!r} does not exist; there are {', '.join(PARTS)}")
    options = PairOptions(
        recipe=recipe,
        kind=split,
        n=n,
        seed=seed,
        policy=named(policy, seed=seed),
        chat=not plain,
        pictures=output.parent / "pictures",
    )
    cut, make_pair = pair_rows(name, fixture(name) if source == "fixture" else source, options)
    if part == "test" and find(name).judged_question:
        raise ValueError(f"the test set of {name} has questions for a judge, no pairs; steering and dev have pairs")
    rows = getattr(cut, part)
    if not rows:
        raise ValueError(f"the part {part} of this split of {name} is empty")
    made, skipped = make_records(rows, make_pair, skip_bad_rows=skip_bad_rows)
    pairs_digest = write_pairs(made, output)
    record = cut.record() | {
        "dataset": name,
        "recipe": recipe,
        "part": part,
        "pairs": len(made),
        "pairs_digest": pairs_digest,
        "skipped": [str(error) for error in skipped],
    }
    write_whole(output.with_name(f"{output.name}.split.json"), json.dumps(record, indent=1) + "\n")
    for error in skipped:
        err.print(f"skipped: {error}", soft_wrap=True)
    if cut.leaks:
        err.print("this split leaks: the rows that steer are test rows, too", style="yellow")
    out.print(f"{len(made)} pairs of {name}, part {part}: {output} (digest {pairs_digest[:12]})", soft_wrap=True)
