"""Loading a model from a folder or the hub, and saying in a sentence why there is none to load."""

from __future__ import annotations

import datetime
import difflib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError

from grains_ref.files import printable, some_of
from grains_ref.models.families import Family
from grains_ref.models.huggingface import HuggingFaceModel
from grains_ref.models.vision_families import family_class

_T = TypeVar("_T")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load(
    path_or_hub_id: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    device_map: str | dict[str, Any] | None = None,
    date: str | datetime.date | None = None,
    **options: Any,
) -> HuggingFaceModel:
    """Load a model, its tokenizer and its image processor from a folder or the hub; check that it can be steered.

    dtype "auto" is the type the weights are stored in.  device_map spreads a model over several devices (needs the
    accelerate package) and then `device` is not used.  date: what chat templates that write today's date write, for
    instance "2024-07-26"; default: the day of loading.  options: more arguments of transformers' `from_pretrained`,
    such as `offload_folder`.  Weights are read from safetensors only; code from the hub is never run.

    Raises:
        UnsupportedModelError: no decoder, or it fails the proof (`proof.prove`).
        ValueError: a weight is NaN or infinite, or the date is none.
        OSError: nothing was found there, or something that is missing or no model of transformers.
    """
    _check_place(path_or_hub_id)
    where = _where(path_or_hub_id)
    config = _read(where, "configuration", lambda: transformers.AutoConfig.from_pretrained(where, **_SAFE))
    family = family_class(config)
    _check_files(Path(path_or_hub_id), family)
    tokenizer = _read(where, "tokenizer", lambda: transformers.AutoTokenizer.from_pretrained(where, **_SAFE))
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _older_chat_template(path_or_hub_id)
    image_processor = _read(where, "image processor", lambda: family.load_image_processor(where))
    model = _read(
        where,
        "weights",
        lambda: family.auto_class.from_pretrained(
            where, dtype=dtype, device_map=device_map, use_safetensors=True, **_SAFE, **options
        ),
    )
    if device_map is None:
        model.to(device)
    folder = Path(path_or_hub_id)
    name = folder.resolve().name if folder.is_dir() else str(path_or_hub_id)
    return HuggingFaceModel(model, tokenizer, name=name, image_processor=image_processor, date=date)


_SAFE = {"trust_remote_code": False}


def _where(path_or_hub_id: str | Path) -> str:
    return os.fspath(path_or_hub_id)


def _check_place(place: str | Path) -> None:
    """Refuse what can be told to be no model before transformers looks.

    Raises:
        OSError: a file, a folder without a configuration, or a path where nothing is.
    """
    path = Path(place)
    if path.is_file():
        if path.suffix == ".gguf":
            raise OSError(_no_gguf(path))
        raise OSError(f"{path} is a file; give the folder that it is in, with config.json and *.safetensors")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise OSError(_without_config(path))
        return
    written = str(place)
    if isinstance(place, Path) or written.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(written):
        advice = _neighbours(path)
        if written.startswith("~"):
            advice = f" '~' is not replaced here; write {Path(written).expanduser()}."
        raise FileNotFoundError(printable(f"there is no folder {place}.{advice} Give a folder, or the id of a model."))


def _without_config(folder: Path) -> str:
    """Why a folder without config.json is no model."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = "its base model"
        with suppress(ValueError, KeyError, TypeError):  # no record of PEFT's; the advice holds all the same
            base = str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        return printable(
            f"{folder} is an adapter (LoRA), not a model. Merge it into {base}: "
            "peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(NEW); save the "
            "tokenizer there too, and load NEW"
        )
    if list(folder.glob("*.gguf")):
        return _no_gguf(folder)
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    inside += sorted(str(path.parent.relative_to(folder)) for path in folder.glob("snapshots/*/config.json"))
    advice = f"did you mean one of the folders in it: {some_of(inside)}?" if inside else "is the download complete?"
    return printable(f"{folder} has no config.json, so it is no model of transformers; {advice}")


def _no_gguf(path: Path) -> str:
    return printable(
        f"{path} holds a model in the format of llama.cpp (GGUF), of which gradients and hidden states cannot be had. "
        "Give the model that it was converted from, with config.json and *.safetensors"
    )


def _neighbours(path: Path) -> str:
    """What lies beside a path that does not exist and is called alike."""
    parent = path.expanduser().parent
    try:
        names = [other.name for other in parent.iterdir() if other.is_dir()]
    except OSError:
        return f" There is no folder {parent} either."
    alike = difflib.get_close_matches(path.name, names, n=3)
    return f" Did you mean {some_of(alike)}?" if alike else ""


def _check_files(folder: Path, family: type[Family]) -> None:
    """What a local folder must have besides its configuration."""
    if not folder.is_dir():
        return
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise OSError(
            f"{folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). Copy the files of the model that it "
            "was trained from, or save it there: tokenizer.save_pretrained(FOLDER)"
        )
    if not list(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            raise OSError(
                f"{folder} has its weights in {some_of(pickled)}, which is never read: a pickle can run code. Convert "
                "it where you trust it: model.save_pretrained(FOLDER) writes safetensors"
            )
        raise OSError(f"{folder} has no weights (*.safetensors); is the download complete?")
    if family.marker and not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise OSError(
            f"{folder} has no image processor ({' or '.join(_PROCESSOR_FILES)}), which a vision-language model needs. "
            "Copy the file of the model that it was trained from"
        )


def _read(where: str, what: str, read: Callable[[], _T]) -> _T:
    """What transformers reads; its own errors, with the next step in front.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return read()
    except Exception as error:
        is_damage = isinstance(error, SafetensorError | json.JSONDecodeError)
        is_damage = is_damage or type(error) is Exception  # from `tokenizers`
        is_missing = isinstance(error, OSError | ImportError) and "accelerate" not in str(error)
        if not is_damage and not is_missing:
            raise
        first = str(error).strip().partition("\n")[0]
        if Path(where).is_dir():
            raise OSError(printable(f"the {what} in {where} cannot be read: {first}. Get the files again")) from error
        raise OSError(
            printable(
                f"the {what} of {where!r} cannot be had: there is no folder of that name here, and the hub gives none "
                f"(is it spelt rightly, is there a connection, has its licence been accepted with 'hf auth login'?). "
                f"Without a connection: 'hf download {where}' elsewhere, and give the folder. transformers says: "
                f"{first}"
            )
        ) from error


def _older_chat_template(path_or_hub_id: str | Path) -> str | None:
    """The chat template of a repository that keeps it with the processor (chat_template.json), or None."""
    found = transformers.utils.cached_file(
        str(path_or_hub_id), "chat_template.json", _raise_exceptions_for_missing_entries=False
    )
    return str(json.loads(Path(found).read_text(encoding="utf-8"))["chat_template"]) if found else None
