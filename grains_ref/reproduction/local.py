"""Models and pairs of one's own on the full rung: read from folders and files, and never shown as what they are not.

| given as | is |
|---|---|
| `--weights llama-3.1-8b=FOLDER` | a model of the paper; refused if its configuration is another one's |
| `--model NAME=FOLDER` | any text model that loads, shown under the name that it is given |
| `--pairs NAME=FILE` | one file of pairs, split here: no prompt in two parts |
| `--pairs NAME=FOLDER` | `steer.jsonl`, `dev.jsonl`, `test.jsonl`; also `dev_tasks.jsonl` and `tasks.jsonl` |
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from grains_ref.data import PreferencePair, Task, content_digest, read_pairs, read_tasks
from grains_ref.datasets.splits import question_key
from grains_ref.tiny_models.full_size import read_config

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PARTS = ("steer", "dev", "test")
DEV_SHARE = 1 / 3  # of what is left beside the steering pairs
SHAPE = (  # what makes two models of one architecture different ones
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


# ------------------------------------------------------------------------------------------ names
def check_name(name: str, *, taken: Collection[str]) -> None:
    """Refuse a name that a column cannot have, or that is another's.

    Raises:
        ValueError: it is one of those.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"the name {name!r} cannot head a column; use letters, digits, dots, dashes and underscores")
    if name in taken:
        raise ValueError(
            f"{name!r} is the name of a model, dataset or world of the tables; give your own another name, so that its "
            "numbers are never taken for those"
        )


def own_columns(columns: Sequence[str], models: Collection[str], pairs: Collection[str]) -> tuple[str, ...]:
    """The columns of a table with one's own models in the place of its models, and one's own pairs likewise.

    columns: the table's own, "model, dataset".
    """
    of_table = [column.split(", ") for column in columns]
    chosen_models = models or dict.fromkeys(model for model, _ in of_table)
    chosen_sets = pairs or dict.fromkeys(dataset for _, dataset in of_table)
    return tuple(f"{model}, {dataset}" for model in chosen_models for dataset in chosen_sets)


# ------------------------------------------------------------------------------------------ configurations
def read_model_config(place: str) -> PretrainedConfig:
    """The configuration in a local folder.

    Raises:
        OSError, ValueError: there is none, or transformers does not know its architecture.
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(place, local_files_only=True)
    return config


def differences(name: str, config: PretrainedConfig) -> list[str]:
    """In what a configuration is not that of the paper's model `name`; nothing if it is.

    Weights cannot be compared here: a fine-tuned model of the same shape passes.
    """
    expected = read_config(name)
    if config.model_type != expected.model_type:
        return [f"architecture {config.model_type}, not {expected.model_type}"]
    ours, theirs = config.get_text_config(), expected.get_text_config()
    differing = []
    for field in SHAPE:
        value, should_be = getattr(ours, field, None), getattr(theirs, field, None)
        if value != should_be:
            differing.append(f"{field} {value}, not {should_be}")
    return differing


def check_shown_as(name: str, config: PretrainedConfig, *, place: str) -> None:
    """Refuse to show a model under the name of another.

    Raises:
        ValueError: its configuration is not that of the paper's model of this name.
    """
    if differing := differences(name, config):
        raise ValueError(
            f"{place} is not {name}: {'; '.join(differing)}. Its numbers would stand in the tables as {name}'s: give "
            f"it a name of its own with --model NAME={place}"
        )


def shape_in_words(config: PretrainedConfig) -> str:
    """What a configuration is, for the inventory."""
    text: Any = config.get_text_config()
    return f"{config.model_type}, {text.num_hidden_layers} blocks of width {text.hidden_size}"


# ------------------------------------------------------------------------------------------ pairs
@dataclass(frozen=True)
class OwnPairs:
    """Pairs and tasks in their parts; without tasks nothing limits what a strength may cost other skills."""

    steer: list[PreferencePair]
    dev: list[PreferencePair]
    test: list[PreferencePair]
    dev_tasks: tuple[Task, ...] = ()
    test_tasks: tuple[Task, ...] = ()

    @property
    def words(self) -> str:
        """How many there are of each."""
        counts = f"{len(self.steer)} steering, {len(self.dev)} dev and {len(self.test)} test pairs"
        if not self.dev_tasks:
            return f"{counts}; no tasks"
        return f"{counts}; {len(self.dev_tasks)} and {len(self.test_tasks)} tasks"

    @property
    def digest(self) -> str:
        """Of all pairs, part by part."""
        return content_digest([*self.steer, *self.dev, *self.test])


def read_own_pairs(place: str, *, n: int, seed: int, ignore: Sequence[str] = ()) -> OwnPairs:
    """Pairs from a folder in their parts, or from a file that is split here.

    n: steering pairs of a file.  seed: of its split.  ignore: columns to leave unread.

    Raises:
        RowError: a row is bad.
        PairFileError: no such file, or nothing in it.
        ValueError: a part is missing, a prompt is in two parts, a file has too few prompts, or pairs have pictures.
    """
    path = Path(place)
    if path.is_dir():
        own = _from_folder(path, ignore)
    else:
        own = _split(list(read_pairs(path, ignore=ignore).pairs), n=n, seed=seed, where=place)
    if any(pair.image for pair in (*own.steer, *own.dev, *own.test)):
        raise ValueError(f"{place}: pairs with pictures; --pairs takes texts. Use the datasets of the paper's VLMs.")
    return own


def _from_folder(folder: Path, ignore: Sequence[str]) -> OwnPairs:
    missing = [f"{part}.jsonl" for part in PARTS if not (folder / f"{part}.jsonl").is_file()]
    if missing:
        raise ValueError(
            f"{folder} holds no {', '.join(missing)}; expected steer.jsonl, dev.jsonl and test.jsonl, and for a limit "
            "on capability dev_tasks.jsonl and tasks.jsonl. Or name one file, which is split here."
        )
    parts = {part: list(read_pairs(folder / f"{part}.jsonl", ignore=ignore).pairs) for part in PARTS}
    asked: Mapping[str, set[str]] = {part: {_key(pair) for pair in pairs} for part, pairs in parts.items()}
    for first, second in (("steer", "dev"), ("steer", "test"), ("dev", "test")):
        if shared := len(asked[first] & asked[second]):
            raise ValueError(f"{folder}: {shared} prompts are in both {first}.jsonl and {second}.jsonl: that flatters")
    tasks = [folder / name for name in ("dev_tasks.jsonl", "tasks.jsonl")]
    own = OwnPairs(parts["steer"], parts["dev"], parts["test"])
    if any(path.is_file() for path in tasks):
        dev_tasks, test_tasks = (read_tasks(path, ignore=ignore).tasks for path in tasks)
        own = replace(own, dev_tasks=dev_tasks, test_tasks=test_tasks)
    return own


def _split(pairs: list[PreferencePair], *, n: int, seed: int, where: str) -> OwnPairs:
    """n prompts for steering, a third of the rest for dev and two thirds for test; a prompt's pairs stay together."""
    by_prompt: dict[str, list[PreferencePair]] = {}
    for pair in pairs:
        by_prompt.setdefault(_key(pair), []).append(pair)
    if len(by_prompt) < n + 3:
        raise ValueError(
            f"{where} has {len(by_prompt)} different prompts; {n} are needed for steering, and others for dev and "
            "test. Give more, or a folder with steer.jsonl, dev.jsonl and test.jsonl of any size."
        )
    prompts = sorted(by_prompt)
    random.Random(f"pairs {seed}").shuffle(prompts)
    n_dev = max(1, round(DEV_SHARE * (len(prompts) - n)))

    def pairs_of(some: Sequence[str]) -> list[PreferencePair]:
        return [pair for prompt in some for pair in by_prompt[prompt]]

    return OwnPairs(pairs_of(prompts[:n]), pairs_of(prompts[n : n + n_dev]), pairs_of(prompts[n + n_dev :]))


def _key(pair: PreferencePair) -> str:
    """What a pair asks, as far as it matters: letter case and white space do not."""
    if isinstance(pair.prompt, str):
        return question_key(pair.prompt)
    return "\n".join(question_key(turn["content"]) for turn in pair.prompt)
