"""Seeded vectors, headers and settings through every writer of export and back; cards, and damage to shared folders.

What is written is read again bit for bit, or was refused with a reason before anything was written.
"""

from __future__ import annotations

import os
import random
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from robustness.imported_files import targets, vectors, vectors_file
from robustness.vector_files import STRANGE
from torch import Tensor

from grains_ref.export import find_target
from grains_ref.export.hub import SharedVectors
from grains_ref.export.target import Asked, Directions, ExportError, directions_of
from grains_ref.vectors import Header, SteeringVectors, VectorError

TEXTS = (
    "", "x", "maker/model-7b", "/home/me/secret/model", "Grüße 日本語 🙂", "| a | b |", "<script>", "a\nb\n# c",
    "---\n", "`x`", "\x1b[2J\u202e", "\x00", "[x](http://y)", "{i}", "'; drop", '"', "\\", " ", "y" * 3000,
    "- item: value", "%s {0}",
)  # fmt: skip
STRENGTHS = (0, 0.0, -0.0, 1, 2.5, -4.0, 1e-40, 1e300, -1e308, 5e-324, 10**300, True, None, float("nan"), 10**400, "2")
TEMPLATES = ("", "", "", "h.{i}", "model.layers.{i}", "a.{i}.{i}", "{i}", "block", "Blöcke.{i}", "\x00.{i}", "a{i}b")
DAMAGED = ("vectors.safetensors", "README.md", "config.json")


def campaign(rng: random.Random, folder: Path) -> str:
    """One input of a campaign: an export, or a shared folder."""
    made = strange_vectors(rng)
    return shared(rng, made, folder) if rng.random() < 0.4 else exported(rng, made, folder)


def strange_vectors(rng: random.Random) -> SteeringVectors:
    """Vectors that no fit makes, of what a header can hold."""
    n_layers, width = rng.choice([(1, 1), (2, 3), (3, 4), (3, 4), (12, 2)])
    while True:
        parts = torch.randn(2, n_layers, width, generator=torch.Generator().manual_seed(rng.randrange(1 << 30)))
        parts = parts * rng.choice([1.0, 1.0, 1.0, 1e-42, 1e37, 0.0, -0.0])
        if rng.random() < 0.2:
            parts[:, rng.randrange(n_layers)] = 0
        with suppress(VectorError):  # a header that none can have
            header = strange_header(rng)
            return SteeringVectors(v=parts[0] - parts[1], v_pos=parts[0], v_neg=parts[1], header=header)


def strange_header(rng: random.Random) -> Header:
    """A header some of whose fields are strange."""
    changes: dict[str, Any] = {}
    for _ in range(rng.randint(0, 3)):
        name = rng.choice(["model_name", "dialect", "method", "fingerprint", "chat_template", "date", "engine"])
        changes[name] = rng.choice(TEXTS)
    if rng.random() < 0.1:
        changes["site"], changes["positions"] = rng.choice(TEXTS), rng.choice(["all", "after_prompt", ""])
    if rng.random() < 0.4:
        changes["choice"] = strange_choice(rng)
    if rng.random() < 0.3:
        changes["signal"] = {"line": rng.choice(TEXTS), "figures": rng.choice(STRANGE)}
    for name in ("hyper_parameters", "diagnostics"):
        if rng.random() < 0.3:
            key = rng.choice(["pos_explained", "k", *TEXTS])
            changes[name] = {key: rng.choice([*STRANGE, [0.5], [0.5, "x", None], [[1.0]] * 3, [10**400] * 3])}
    if rng.random() < 0.2:
        changes["versions"] = {rng.choice(TEXTS): rng.choice(TEXTS)}
    changes["n_examples"] = rng.choice([0, 1, 50, 10**30])
    return replace(vectors().header, **changes)


def strange_choice(rng: random.Random) -> dict[str, Any]:
    """What a sweep chose, some of it strange."""
    choice: dict[str, Any] = {"lam": rng.choice([2.5, 10**300, -0.0]), "layers": rng.choice([[0], [0, 1, 2], [10**30]])}
    for _ in range(rng.randint(0, 3)):
        name = rng.choice([
            "dev_accuracy", "dev_accuracy_unsteered", "dev_pairs", "task_accuracy", "tasks", "max_loss", "dev_curve",
        ])  # fmt: skip
        choice[name] = rng.choice([0.5, *STRANGE, [[0.0, 0.5], ["|", None]], [[10**400, 10**400]], *TEXTS])
    return choice


# --- writers


def exported(rng: random.Random, made: SteeringVectors, folder: Path) -> str:
    """One export, read again."""
    target = find_target(rng.choice(targets()))
    blocks = rng.choice(TEMPLATES) if target.block_name else ""
    path = folder / "v.safetensors"
    made.save(path)
    layers = rng.sample(range(made.n_layers), rng.randint(1, made.n_layers))
    lam: Any = rng.choice(STRENGTHS)
    try:
        given = target.carried(directions_of(made, lam=lam, layers=layers))
        content = target.write(given, Asked(vectors=path, blocks=blocks))
        for words in (*target.losses(given), target.usage(folder / "out", given) if given.lam is not None else ""):
            words.encode()
    except ExportError:
        return "typed error"
    if target.name == "lm-eval" and not (blocks or target.block_name).endswith(".{i}"):
        return "ok"  # the harness calls blocks so; where the number stands, only it knows
    again = target.read(content, "the file")
    assert same(again.by_block, given.by_block), "other vectors came back"
    assert again.header == given.header, "another header came back"
    lams = [None if lam is None else float(lam) for lam in (again.lam, given.lam)]
    assert lams[0] == lams[1], f"another strength came back: {again.lam!r} for {given.lam!r}"
    if target.name != "sglang":
        stranger = Directions(by_block=given.by_block, lam=given.lam, header=None)
        again = target.read(target.write(stranger, Asked(vectors=path, blocks=blocks)), "the file")
        assert same(again.by_block, given.by_block), "other vectors came back without a header"
    return "ok"


def same(got: Any, want: Any) -> bool:
    """Whether two mappings have the same vectors bit for bit."""
    return sorted(got) == sorted(want) and all(bits(got[block]) == bits(want[block]) for block in want)


def bits(row: Tensor) -> bytes:
    """A vector as its bytes: -0.0 is not 0.0."""
    return row.contiguous().numpy().tobytes()


# --- shared folders


def shared(rng: random.Random, made: SteeringVectors, folder: Path) -> str:
    """Vectors saved with their card, damaged, loaded, and saved again."""
    place = folder / "shared"
    place.mkdir()
    if rng.random() < 0.2:
        somebody = place / rng.choice(DAMAGED[1:])
        somebody.write_bytes(rng.choice([b"mine", b"\xff\xfe", b"", b'{"model_type": "llama"}']))
        return _not_replaced(made, place, somebody)
    behaviour = rng.choice(TEXTS)
    SharedVectors(made, behaviour=behaviour).save_pretrained(place)
    _check_card(place / "README.md", made)
    _assert_equal(SharedVectors.from_pretrained(place).vectors, made)
    name = rng.choice(DAMAGED)
    _damage(rng, place / name)
    try:
        loaded = SharedVectors.from_pretrained(place).vectors
    except VectorError:
        if name != DAMAGED[0]:
            raise AssertionError("vectors that are whole were refused") from None
        return "typed error"
    _assert_equal(loaded, made)
    if name == "README.md":
        with suppress(VectorError):
            SharedVectors(made, behaviour=behaviour).save_pretrained(place)
    return "ok"


def _not_replaced(made: SteeringVectors, place: Path, somebody: Path) -> str:
    content = somebody.read_bytes()
    try:
        SharedVectors(made).save_pretrained(place)
    except VectorError:
        assert somebody.read_bytes() == content
        assert os.listdir(place) == [somebody.name], "something was written although it was refused"
        return "typed error"
    raise AssertionError(f"somebody's {somebody.name} was replaced")


def _check_card(path: Path, made: SteeringVectors) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text), "a character that a terminal obeys"
    card = ModelCard.load(path)
    assert card.data.library_name == "grains_ref"
    assert "<script>" not in card.text
    headings = [line for line in card.text.splitlines() if line.startswith("# ")]
    assert headings == ["# Steering vectors"], f"headings out of a header: {headings}"
    layers = [line for line in card.text.splitlines() if re.match(r"\| [0-9]+ \|", line)]
    assert len(layers) >= made.n_layers


def _assert_equal(got: SteeringVectors, want: SteeringVectors) -> None:
    assert bits(got.v) == bits(want.v)
    assert bits(got.v_pos) == bits(want.v_pos)
    assert got.header == want.header


def _damage(rng: random.Random, path: Path) -> None:
    """A file is flipped, cut, exchanged, gone, a pipe, a folder or a loop."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "cut", "other", "gone", "pipe", "folder", "loop"])
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "other":
        other = [b"", b"\xff" * 9, b"[" * 99_999, b"{}", b"null", vectors_file().read_bytes()[:40], b"\x00"]
        path.write_bytes(rng.choice(other))
    else:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path)
