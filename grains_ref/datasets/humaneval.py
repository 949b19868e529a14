"""HumanEval: 164 beginnings of Python functions, to be completed; solved is what passes the problem's own tests.

lm-evaluation-harness asks and judges (tasks `humaneval` and `humaneval_instruct`); here the problems are read and
checked.  Whether an answer is right shows only when it is run: code that a model wrote.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from grains_ref.datasets.dataset import Dataset, Harness, Part
from grains_ref.datasets.records import Generation, Record, Row
from grains_ref.datasets.schema import TEXT, Schema
from grains_ref.datasets.sources import Repository, Source, load_rows

CONFIG = "openai_humaneval"
REPOSITORY = Repository("openai/openai_humaneval", old_ids=("openai_humaneval",), include=(f"{CONFIG}/test-*",))
COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
SCHEMA = Schema(dict.fromkeys(COLUMNS, TEXT), id_column="task_id", visible=COLUMNS)


def read(source: Source = "") -> tuple[Row, ...]:
    """All problems, in their order; nothing of them is run.

    Raises:
        RowError: a problem and its solution are no Python, or do not define the function that the tests call.
    """
    rows = load_rows(source, REPOSITORY, config=CONFIG, split="test", schema=SCHEMA)
    for row in rows:
        try:
            solved = ast.parse(row["prompt"] + row["canonical_solution"])
        except SyntaxError as error:
            row.fail("canonical_solution", f"behind the prompt is no Python: {error.msg}.")
        defined = [node.name for node in solved.body if isinstance(node, ast.FunctionDef)]
        if row["entry_point"] not in defined:
            row.fail("entry_point", f"{row['entry_point']!r} is not defined; prompt and solution define {defined}.")
    return rows


def generation(row: Row) -> Generation:
    """A problem with its solution as the reference."""
    return Generation(
        id=row.id,
        question=row["prompt"],
        prompt=row["prompt"],
        references=(row["canonical_solution"],),
        wrong=(),
        where=row.where,
        group=row["entry_point"],
    )


def records(source: Source, pictures: Path) -> dict[str, Sequence[Record]]:
    """Every record of a folder; there are no pictures."""
    return {"generation": [generation(row) for row in read(source)]}


DATASET = Dataset(
    name="humaneval",
    title="HumanEval",
    used_for=(),
    parts=(Part(REPOSITORY, "test", 164, configs=(CONFIG,)),),
    licence="MIT; its answers are judged by running them",
    pictures=False,
    records=records,
    harness=Harness(
        plain="humaneval/humaneval.yaml",
        chat="humaneval/humaneval_instruct.yaml",
        split="test",
        metric="pass@1",
        rows=read,
        runs_code=True,
    ),
)
