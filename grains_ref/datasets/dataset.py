"""What a dataset's module offers to the commands and tables: its `DATASET`, of the class `Dataset`.

A module of this package that has a `DATASET` is a dataset; `registry` finds it by that, and nothing else has to know
its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from grains_ref.data import PreferencePair
from grains_ref.datasets.few_shot import CountTokens
from grains_ref.datasets.picture_cache import CACHE
from grains_ref.datasets.records import JudgedQuestion, MultipleChoice, Record, Row
from grains_ref.datasets.rejection_policy import RANDOM, Policy
from grains_ref.datasets.sources import Repository, Source
from grains_ref.datasets.splits import N_STEERING, Split


@dataclass(frozen=True)
class Part:
    """One split of one repository, and how many rows it has in all configurations together.

    `needed` is off for what can be read, but is in no table of the paper.
    """

    repository: Repository
    split: str
    rows: int
    configs: tuple[str, ...] = ("",)
    needed: bool = True

    def __str__(self) -> str:
        if len(self.configs) > 1:
            place = f"{len(self.configs)} configurations/{self.split}"
        else:
            place = f"{self.configs[0]}/{self.split}".removeprefix("/")
        remark = "" if self.needed else ", in no table"
        return f"{self.repository.id}  {place}  {self.rows:,} rows{remark}"


@dataclass(frozen=True)
class PairOptions:
    """How preference pairs are to be made of a dataset.

    Attributes:
        recipe: one of the dataset's recipes; "" is its first.
        kind: of the split, "paper" or "release" (as the released code, which leaks).
        n: examples that steer.
        seed: of the split and of what is drawn for a pair.
        policy: which false answer is rejected, where there are several.
        chat: one message of the user for a chat template, or plain text.
        pictures: the folder for pictures that come inside the data.
    """

    recipe: str = ""
    kind: str = "paper"
    n: int = N_STEERING
    seed: int = 0
    policy: Policy = RANDOM
    chat: bool = True
    pictures: Path = CACHE


class PairRows(NamedTuple):
    """A split, and what makes a preference pair of one of its examples."""

    split: Split[Any]
    make_pair: Callable[[Any], PreferencePair]


class Capability(Protocol):
    """How questions of a test of general ability are drawn."""

    def __call__(
        self, source: Source, *, n: int, count_tokens: CountTokens, context: int | None
    ) -> list[MultipleChoice]:
        """n questions, drawn with a fixed seed, each with as many examples as fit the model."""


@dataclass(frozen=True)
class Harness:
    """How lm-evaluation-harness asks a dataset's questions, as a further test of ability.

    Attributes:
        plain, chat: the harness's own files of the task, beneath its folder of tasks: for a model without a chat
            template and for one with it.
        is_ours: whether the files lie in this package's folder instead, as the harness has no such task.
        split: the harness's name of the split that is asked.
        metric: what it says of each question: 1 for solved.
        rows: the questions of a source, checked.
        runs_code: whether answers are judged by running what the model wrote.
        through_template: whether the question is a user's message where there is a chat template.
    """

    plain: str
    chat: str
    split: str
    metric: str
    rows: Callable[[Source], Sequence[Row]]
    runs_code: bool = False
    through_template: bool = True
    is_ours: bool = False


@dataclass(frozen=True)
class Dataset:
    """A dataset: what it is, how to get it, and what can be made of it.

    Attributes:
        name: of its module, its miniature's folder, and for the command line.
        title: what people call it.
        used_for: the paper's tables and figures that it is in ("table 1"), and "cost"; () for none.
        parts: what is read of it.
        licence: in words, with what a user should be warned of.
        pictures: whether its questions are about pictures.
        records: (source, folder for pictures) -> every record that can be made of it, by form.
        pair_rows: (source, options) -> rows, and how a pair is made of one; None if it gives no pairs.
        recipes: the ways to make a pair, the default first; () if there is only one.
        judged_question: makes a question for a judge of a row of the test set; None if the test set gives pairs.
        capability: for a test of general ability, its questions; None for other datasets.
        harness: for a further test of ability, how lm-evaluation-harness asks it; None for other datasets.
        by_hand: what has to be fetched outside of the hub's client, in words; "" if nothing has.
        files: the files and folders that are then in its folder.
    """

    name: str
    title: str
    used_for: tuple[str, ...]
    parts: tuple[Part, ...]
    licence: str
    pictures: bool
    records: Callable[[Source, Path], Mapping[str, Sequence[Record]]]
    pair_rows: Callable[[Source, PairOptions], PairRows] | None = None
    recipes: tuple[str, ...] = ()
    judged_question: Callable[[Row], JudgedQuestion] | None = None
    capability: Capability | None = None
    harness: Harness | None = None
    by_hand: str = ""
    files: tuple[str, ...] = ()

    @property
    def repositories(self) -> tuple[Repository, ...]:
        """Its repositories on the hub, each once."""
        return tuple(dict.fromkeys(part.repository for part in self.parts))

    @property
    def commands(self) -> tuple[str, ...]:
        """Shell commands that fetch it into FOLDER, which is then the reader's source; () if it is fetched by hand."""
        if self.by_hand:
            return ()
        lines = [repository.download() for repository in self.repositories]
        if any(repository.needs_token for repository in self.repositories):
            lines.insert(0, "hf auth login")
        return tuple(lines)

    def __str__(self) -> str:
        lines = [f"{self.title} ({self.name}), for {_listed(self.used_for) or 'no table of the paper'}"]
        lines += [f"  {part}" for part in self.parts]
        if any(repository.needs_token for repository in self.repositories):
            access = "needs a token: accept the terms on its page, then log in"
        else:
            access = "open"
        lines.append(f"  licence: {self.licence}; access: {access}")
        if self.recipes:
            lines.append(f"  recipes of pairs: {', '.join(self.recipes)}")
        lines += [f"  get it: {command}" for command in self.commands or (self.by_hand,)]
        return "\n".join(lines)


def _listed(used_for: Sequence[str]) -> str:
    """("table 1", "table 4", "figure 3", "cost") as "tables 1, 4; figure 3; cost"."""
    numbers: dict[str, list[str]] = {}
    for use in used_for:
        kind, _, number = use.partition(" ")
        numbers.setdefault(kind, []).append(number)
    groups = []
    for kind, of_kind in numbers.items():
        plural = "s" if len(of_kind) > 1 else ""
        groups.append(f"{kind}{plural} {', '.join(of_kind)}".strip())
    return "; ".join(groups)
