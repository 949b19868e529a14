"""Seeded damage to the work folder of a fit: it costs what was damaged, and never yields other vectors.

rng = random.Random(0)
for _ in range(8_000):
    check(mutations(rng))
"""

from __future__ import annotations

import functools
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from robustness.vector_files import STRANGE, cut, flip, layout, length, metadata, no_header
from torch import Tensor, nn

from grains_ref.data import PreferencePair
from grains_ref.files import FileError, parse_record, record_bytes
from grains_ref.fitting import FitRecord, resumable_fit
from grains_ref.fitting import resumable as fitting
from grains_ref.fitting.work_folder import WorkFolder, WorkFolderError, open_work_folder
from grains_ref.grains import Encoded, Example, HyperParameters
from grains_ref.vectors.tensor_files import parse_tensor_file, tensor_file

Folder = dict[str, bytes]  # names and contents

HP = HyperParameters(k=2, m=2)
N = 3


class SmallModel:
    """As much of a model as a fit needs, in closed form."""

    name, width, hf, device = "small", 4, SimpleNamespace(dtype=torch.float32), torch.device("cpu")
    blocks: Sequence[nn.Module] = (nn.Identity(), nn.Identity())

    def __init__(self, *, fingerprint: str = "f" * 64) -> None:
        self._fingerprint = fingerprint
        self.origin: dict[str, str] = {}

    def fingerprint(self) -> str:
        return self._fingerprint

    def logits(self, encoded: Encoded, embeds: Tensor, response_ids: Tensor) -> Tensor:
        score = embeds.sin().sum((1, 2))  # (B,)
        return torch.stack([torch.zeros_like(score), score], dim=1)[:, None].expand(-1, len(response_ids), -1)

    def residuals(self, encoded: Encoded, embeds: Tensor) -> Tensor:
        return torch.stack([embeds.sum(1), embeds.cos().sum(1)], dim=1)  # (B, L, d)

    def baseline(self, encoded: Encoded, name: str) -> Tensor:
        return {"zero": torch.zeros_like, "one": torch.ones_like}[name](encoded.embeds)


def examples(seed: int = 0) -> list[Example]:
    """N examples of 3, 4, ... tokens, the first of them special."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for n in range(3, 3 + N):
        tokens, kinds = ("t",) * n, ("special", *["text"] * (n - 1))
        encoded = Encoded(torch.arange(n) + seed, torch.randn(n, 4, generator=draw), tokens, kinds, {})  # type: ignore[arg-type]
        made.append(Example(encoded, y_pos=torch.tensor([1]), y_neg=torch.tensor([0])))
    return made


PAIRS = [PreferencePair(f"{i}", f"prompt {i}", "yes", "no", where=f"pairs.jsonl:{i + 1}") for i in range(N)]


def fit_in(work: WorkFolder, **changes: Any) -> FitRecord:
    """The fit that all of this is about, or one with changes."""
    options: dict[str, Any] = {"model": SmallModel(), "pairs": PAIRS, "examples": examples(), "hp": HP}
    options |= {"on_example": lambda n: None, "engine": "reference"} | changes
    with patch.object(fitting, "library_versions", dict):  # to look them up takes longer than the fit
        return resumable_fit(**options, work=work)


@functools.cache
def finished() -> tuple[Folder, FitRecord]:
    """The files of a finished fit, and its result."""
    with tempfile.TemporaryDirectory() as folder:
        with open_work_folder(Path(folder) / "work") as work:
            record = fit_in(work)
        return {path.name: path.read_bytes() for path in (Path(folder) / "work").iterdir()}, record


@functools.cache
def of_another_fit() -> Folder:
    """The files of a fit of other pairs."""
    with tempfile.TemporaryDirectory() as folder:
        with open_work_folder(Path(folder) / "work") as work:
            fit_in(work, pairs=PAIRS[::-1], examples=examples(seed=1))
        return {path.name: path.read_bytes() for path in (Path(folder) / "work").iterdir()}


def mutations(rng: random.Random) -> Folder:
    """The files of a finished or half-finished fit, one or two of them damaged."""
    files = dict(finished()[0])
    for name in rng.sample(sorted(files), rng.choice([0, 0, 1, 2])):
        del files[name]
    for name in rng.sample(sorted(files), min(len(files), rng.choice([1, 1, 1, 2]))):
        kinds = (flip, cut, length, no_header, exchanged, edited)
        if name != "fit.json":
            kinds = (*kinds, layout, metadata)
        files[name] = rng.choice(kinds)(rng, finished()[0][name])
    return files


def exchanged(rng: random.Random, content: bytes) -> bytes:
    """A whole file, but not the one that belongs there."""
    return rng.choice([*finished()[0].values(), *of_another_fit().values(), b"", b"{}"])


def edited(rng: random.Random, content: bytes) -> bytes:
    """One value is another, and the digests are right again, as only a hand could make it."""
    try:
        tensors, record = parse_tensor_file(content, name="")
    except FileError:
        record = parse_record(content, name="")
        return record_bytes(_edited(rng, record))
    if rng.random() < 0.5:
        name = rng.choice(sorted(tensors))
        tensors[name] = rng.choice([tensors[name][:1], tensors[name].double(), tensors[name] * torch.nan])
        return tensor_file(tensors, record)
    return tensor_file(tensors, _edited(rng, record))


def _edited(rng: random.Random, record: dict[str, Any]) -> dict[str, Any]:
    strange = [value for value in STRANGE if value != 10**400]
    key = rng.choice(sorted(record))
    if rng.random() < 0.2:
        return {name: value for name, value in record.items() if name != key}
    if isinstance(record[key], dict) and rng.random() < 0.5:
        return record | {key: _edited(rng, record[key] or {"x": 1})}
    return record | {rng.choice([key, key, "x"]): rng.choice(strange)}


def check(files: Folder) -> str:
    """ "ok": the fit goes on to the same vectors; "typed error": it says what to do, and that leads there."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "work"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        advice: list[str] = []
        while (message := _goes_on(folder)) and len(advice) <= 2 * N:
            advice.append(message)
            _follow(message, folder)
        assert not message, f"the advice does not end: {advice}"
        assert not folder.exists()
    return "typed error" if advice else "ok"


def _goes_on(folder: Path) -> str:
    """Run the fit again: the message of its error, or "" where it gave the right vectors."""
    expected = finished()[1]
    try:
        with open_work_folder(folder) as work, patch("os.fsync"):  # for the campaign's sake
            record = fit_in(work)
            assert work.discard() == []
    except WorkFolderError as error:
        return str(error)
    assert all(torch.equal(getattr(record.fit, side).v, getattr(expected.fit, side).v) for side in ("pos", "neg"))
    assert record.vectors.header == expected.vectors.header
    return ""


def _follow(message: str, folder: Path) -> None:
    """Do what the message says: delete the one file that it names, or move a stranger away, or delete all."""
    named = re.findall(re.escape(str(folder)) + r"/([\w.]+)", message)
    if "delete this file and run the command again" in message:
        assert len(named) == 1, f"one file must be named: {message}"
        (folder / named[0]).unlink()
    elif "is not empty and not a work folder" in message:
        for name in re.findall(r"[0-9]{6}\.safetensors", message):
            (folder / name).unlink()
    else:
        assert "delete the folder" in message
        for path in folder.iterdir():
            path.unlink()


def campaign(rng: random.Random, folder: Path) -> str:
    """One damaged input of a campaign; the folder is not needed."""
    return check(mutations(rng))
