"""What the tests of the datasets share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects

from grains_ref.datasets.records import Prompt, Row, Where
from grains_ref.datasets.registry import available, find
from grains_ref.datasets.sources import local_files

WHOLE = "00000-of-00001.parquet"  # how the name of a parquet file on the hub ends


def row(**fields: object) -> Row:
    """A row with these fields, from line 3 of a file that does not exist."""
    return Row("r", Where("made/up", 3), fields)


def text_of(prompt: Prompt) -> str:
    """The words of a prompt, plain or in its one message."""
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


def assert_commands_fetch_what_is_read(name: str, hub_files: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Check that a dataset's commands fetch every file that is read, into its place, and no other.

    hub_files: repository -> the files that it holds, beside those that do not matter.  folder: an empty one.
    """
    dataset = find(name)
    fetched = []
    for command in dataset.commands:
        words = shlex.split(command.replace("FOLDER", str(folder)))
        if words[:2] != ["hf", "download"]:
            continue
        place = Path(words[words.index("--local-dir") + 1])
        patterns = [words[i + 1] for i, word in enumerate(words) if word == "--include"]
        for file in filter_repo_objects(hub_files[words[2]], allow_patterns=patterns or None):
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).touch()
            fetched.append(place / file)
    assert available(name, folder).is_available
    needed = []
    for part in dataset.parts:
        place = part.repository.within(folder, dataset.repositories)
        for config in part.configs:
            needed += local_files(place, config=config, split=part.split)
    assert sorted(fetched) == sorted(needed)
