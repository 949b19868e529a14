"""`grains-ref datasets`: what the paper's datasets are, what is here, and their preference pairs as a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grains_ref.cli.console import err, guarded, out

if TYPE_CHECKING:  # the readers are imported when a command runs, so that the others start as fast as before
    from grains_ref.data import PreferencePair
    from grains_ref.datasets.records import Row
    from grains_ref.datasets.splits import Split

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
    from grains_ref.datasets.about import DATASETS, available

    found = {about.name: available(about.name, source / about.name if source else "") for about in DATASETS}
    if as_json:
        rows = {a.name: {"available": found[a.name].is_available, "why": found[a.name].why} for a in DATASETS}
        print(json.dumps(rows, indent=1))
        return
    for about in DATASETS:
        out.print(str(about))
        state = found[about.name]
        out.print(f"  {'here' if state.is_available else 'not here'}: {state.why}\n", soft_wrap=True)


@datasets.command()
@guarded
def pairs(
    name: Annotated[str, typer.Argument(help="truthfulqa, toxigen, faitheval, spa_vl or mmhal.")],
    output: Annotated[Path, typer.Option("--out", help="The JSONL file to write.")],
    source: Annotated[
        str, typer.Option(help="A folder, a hub id, or 'fixture' for the miniature. (default: the hub)")
    ] = "",
    part: Annotated[str, typer.Option(help="steering, dev or test.")] = "steering",
    split: Annotated[
        str, typer.Option(help="paper, or release: as the released code, which LEAKS test rows.")
    ] = "paper",
    n: Annotated[int, typer.Option("-n", help="Examples for steering.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the split and of what is drawn for a pair.")] = 0,
    policy: Annotated[
        str, typer.Option(help="Which false answer, where there are several: random or first.")
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
    from grains_ref.datasets.about import fixture
    from grains_ref.datasets.records import each, write_pairs

    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(f"--out {output} must be a file in a folder that exists")
    place: str | Path = fixture(name) if source == "fixture" else source
    cut, make = _cut(name, place, split, n, seed, policy, chat=not plain, pictures=output.parent / "pictures")
    rows = {"steering": cut.steering, "dev": cut.dev, "test": cut.test}
    if part not in rows:
        raise ValueError(f"--part {part!r} does not exist; there are {', '.join(rows)}")
    if not rows[part] or (name == "mmhal" and part == "test"):
        raise ValueError(f"{name} has no pairs in the part {part}; the pairs of mmhal are those that steer")
    made, skipped = each(rows[part], make, skip_bad_rows=skip_bad_rows)
    pairs_digest = write_pairs(made, output)
    record = cut.record() | {"dataset": name, "part": part, "pairs": len(made), "pairs_digest": pairs_digest}
    record["skipped"] = [str(error) for error in skipped]
    output.with_name(output.name + ".split.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for error in skipped:
        err.print(f"skipped: {error}")
    if cut.leaks:
        err.print("this split leaks: the rows that steer are test rows, too", style="yellow")
    out.print(f"{len(made)} pairs of {name}, part {part}: {output} (digest {pairs_digest[:12]})", soft_wrap=True)


def _cut(
    name: str, source: str | Path, kind: str, n: int, seed: int, policy: str, *, chat: bool, pictures: Path
) -> tuple[Split[Row], Callable[[Row], PreferencePair]]:
    """The split of a dataset, and what makes a pair of its rows."""
    from grains_ref.datasets import faitheval, mmhal, spa_vl, toxigen, truthfulqa
    from grains_ref.datasets.policies import at_random, first

    if kind not in ("paper", "release"):
        raise ValueError(f"--split {kind!r} does not exist; there are paper and release")
    if policy not in ("random", "first"):
        raise ValueError(f"--policy {policy!r} does not exist; there are random and first (hardest: from Python only)")
    rule = first if policy == "first" else at_random(seed=seed)
    if name == "truthfulqa":
        cut = truthfulqa.split(source, kind=kind, n=n, seed=seed)
        return cut, partial(truthfulqa.pair, policy=rule, chat=chat)
    if name == "faitheval":
        return faitheval.split(source, kind=kind, n=n, seed=seed), partial(faitheval.pair, policy=rule, chat=chat)
    if name == "toxigen":
        return toxigen.split(source or toxigen.HUB_ID, kind=kind, n=n, seed=seed), partial(toxigen.pair, chat=chat)
    if name == "spa_vl":
        cut = spa_vl.split(source or spa_vl.HUB_ID, kind=kind, n=n, seed=seed, pictures=pictures)
        return cut, partial(spa_vl.pair, chat=chat)
    if name == "mmhal":
        return mmhal.split(source or mmhal.HUB_ID, kind=kind, n=n, seed=seed), partial(mmhal.pair, chat=chat)
    raise ValueError(f"no pairs are made of {name!r}; they are of truthfulqa, faitheval, toxigen, spa_vl and mmhal")
