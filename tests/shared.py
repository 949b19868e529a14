"""Fixtures shared by the whole suite: the tiny models, built once."""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
import typer.testing
from hypothesis import settings

import grains_ref.fixtures
import grains_ref.tiny_models.worlds
from grains_ref.datasets import sources
from grains_ref.models import HuggingFaceModel, load
from grains_ref.tiny_models.random_models import random_llama, random_qwen2
from grains_ref.tiny_models.random_vision_models import (
    random_gemma3,
    random_gemma3_text,
    random_llava,
    random_qwen_vl,
)

# The tensors are far too small to be worth a second thread.
torch.set_num_threads(1)
# A red run must mean changed code: no new examples each time, and no failure because the machine is slow.
settings.register_profile("suite", deadline=None, derandomize=True, database=None, max_examples=20)
settings.load_profile("suite")


def first_quick(values: Iterable[Any], quick: int = 1) -> list[Any]:
    """Values of a parametrised test, all but the first few marked `thorough`; a tuple stands for several arguments."""
    return [value if i < quick else thorough(value) for i, value in enumerate(values)]


def only_quick(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Values of a parametrised test, all but the named ones marked `thorough`."""
    listed = list(values)
    unknown = [value for value in quick if value not in listed]
    if unknown:
        raise ValueError(f"{unknown} are none of the values {listed}")
    return [value if value in quick else thorough(value) for value in listed]


def thorough(value: Any) -> Any:
    """The value of a parametrised test with the mark; ids and marks of its own stay."""
    if isinstance(value, type(pytest.param())):
        return pytest.param(*value.values, id=value.id, marks=[*value.marks, pytest.mark.thorough])
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.thorough)


SHIPPED = Path(grains_ref.tiny_models.worlds.__file__).parent
MINIATURES = Path(grains_ref.fixtures.__file__).parent / "datasets"


@pytest.fixture(autouse=True, scope="session")
def looked_up_once() -> Iterator[None]:
    """What stays the same while the suite runs and is slow to find."""
    with pytest.MonkeyPatch.context() as patch:
        # For every command that a test runs, typer reads the annotations of all: longer than most commands take.
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.testing._get_command))
        # Every fit and every file of vectors names them: each time a search through all that is installed.
        patch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))
        patch.setattr(sources, "_read_files", miniatures_once(sources._read_files))
        yield


ASKED_FOR: list[str] = []  # addresses beyond this machine that a test wanted to reach


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Nothing beyond this machine can be reached, as on a machine without a network, but at once."""
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def look_up_here(host: Any, *more: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name in (None, "", "localhost") or re.fullmatch(r"127\.[0-9.]+|::1|0\.0\.0\.0", name):
            return look_up(host, *more, **options)
        ASKED_FOR.append(str(name))
        raise socket.gaierror(socket.EAI_NONAME, "no network in the tests")

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1")):
            ASKED_FOR.append(str(address[0]))
            raise OSError(errno.ENETUNREACH, "no network in the tests")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up_here)
        patch.setattr(socket.socket, "connect", connect_here)
        yield


@pytest.fixture(autouse=True)
def asks_no_network() -> Iterator[None]:
    """A test that wants the network fails, also where the code goes on without it."""
    yield
    asked_for = sorted(set(ASKED_FOR))
    ASKED_FOR.clear()
    assert not asked_for, f"the network was asked for: {asked_for}"


def miniatures_once(read: Callable[[Sequence[Path], str], Any]) -> Callable[[Sequence[Path], str], Any]:
    """Files of the repository's own stay as they are, and the `datasets` library takes long over each."""
    known: dict[tuple[Path, ...], Any] = {}

    def read_files(files: Sequence[Path], scratch: str) -> Any:
        if not all(path.is_relative_to(MINIATURES) for path in files):
            return read(files, scratch)
        if tuple(files) not in known:
            known[tuple(files)] = read(files, scratch)
        return known[tuple(files)]

    return read_files


@pytest.fixture(scope="session")
def llama() -> HuggingFaceModel:
    return random_llama()


@pytest.fixture(scope="session")
def qwen2() -> HuggingFaceModel:
    return random_qwen2()


@pytest.fixture(scope="session")
def gemma3_text() -> HuggingFaceModel:
    return random_gemma3_text()


TEXT = {"llama": random_llama, "qwen2": random_qwen2, "gemma3_text": random_gemma3_text}


@pytest.fixture(scope="session", params=only_quick(TEXT.values(), random_llama, random_gemma3_text), ids=TEXT)
def model(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Each random text model in turn, in float32."""
    return request.param()


@pytest.fixture(scope="session", params=only_quick(TEXT.values(), random_llama, random_gemma3_text), ids=TEXT)
def model64(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Each random text model in turn, in float64 (but for transformers' own float32 islands)."""
    return request.param(dtype=torch.float64)


VISION = {"llava": random_llava, "qwen_vl": random_qwen_vl, "gemma3": random_gemma3}


@pytest.fixture(scope="session", params=only_quick(VISION.values(), random_llava, random_qwen_vl), ids=VISION)
def vision_model(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Each random vision-language model in turn, in float32."""
    return request.param()


@pytest.fixture(scope="session", params=only_quick(VISION.values(), random_llava, random_qwen_vl), ids=VISION)
def vision_model64(request: pytest.FixtureRequest) -> HuggingFaceModel:
    """Each random vision-language model in turn, in float64 (but for transformers' own float32 islands)."""
    return request.param(dtype=torch.float64)


@pytest.fixture(scope="session")
def toy() -> toys.ToyDecoder:
    return toys.ToyDecoder()


@pytest.fixture(scope="session")
def simple_model() -> HuggingFaceModel:
    """The model trained on the simple world, seed 0."""
    return load(SHIPPED / "simple-seed0")


@pytest.fixture(scope="session")
def graded_model() -> HuggingFaceModel:
    """The model trained on the graded world, seed 0."""
    return load(SHIPPED / "graded-seed0")
