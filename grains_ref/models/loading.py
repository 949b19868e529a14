"""Loading a model from a folder or the hub, and saying in a sentence why there is none to load."""

from __future__ import annotations

import datetime
import difflib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from grains_ref.files import printable, some_of
from grains_ref.models import parallel
from grains_ref.models.adapters import is_adapter, read_adapter
from grains_ref.models.families import Family, UnsupportedModelError
from grains_ref.models.gguf_files import GgufFile, find_gguf, loading_options
from grains_ref.models.huggingface import HuggingFaceModel
from grains_ref.models.sources import Parts
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
    base: str | Path | None = None,
    date: str | datetime.date | None = None,
    **options: Any,
) -> HuggingFaceModel:
    """Load a model, its tokenizer and its image processor from a folder or the hub; check that it can be steered.

    The folder may be an adapter's, which is put on its base, or hold a GGUF file, which may also be named itself.

    dtype "auto" is the type the weights are stored in; those of a GGUF file become float32.  device_map spreads a model
    over several devices (needs the accelerate package) and then `device` is not used; "tensor_parallel" spreads every
    matrix over the processes that torchrun has started.  base: of an adapter, where it is
    not where its adapter_config.json says.  date: what chat templates that write today's date write, for instance
    "2024-07-26"; default: the day of loading.  options: more arguments of transformers' `from_pretrained`, such as
    `offload_folder`.  Weights are read from safetensors or GGUF only; code from the hub is never run.

    Raises:
        UnsupportedModelError: no decoder, it fails the proof (`proof.prove`), a file lacks some of its weights, or an
            adapter was trained on another base.
        ValueError: a weight is NaN or infinite, the date is none, a base is given for what is no adapter, there is no
            such dtype, or no such device here.
        OSError: nothing was found there, or something that is missing or no model of transformers.
        ImportError: a package for adapters or GGUF is missing.
    """
    _check_dtype(dtype)
    if device_map is None:
        _check_device(device)
    how = {"dtype": dtype, "device": device, "device_map": device_map, **options}
    where = os.fspath(path_or_hub_id)
    if is_adapter(where):
        parts = _read_adapter(Path(where), base=None if base is None else os.fspath(base), how=how)
    elif base is not None:
        raise ValueError(f"base is {base}, but {where} is no adapter (it has no adapter_config.json): leave base out")
    else:
        parts = _read_parts(path_or_hub_id, **how)
    path = Path(path_or_hub_id)
    name = str(path_or_hub_id)
    if path.exists():
        name = path.resolve().name
    return HuggingFaceModel(
        parts.hf, parts.tokenizer, name=name, image_processor=parts.image_processor, date=date, origin=parts.origin
    )


def _read_parts(
    place: str | Path,
    *,
    dtype: str | torch.dtype,
    device: str | torch.device,
    device_map: str | dict[str, Any] | None,
    **options: Any,
) -> Parts:
    """A model that is no adapter, with what belongs to it."""
    _check_place(place)
    where = os.fspath(place)
    origin: dict[str, str] = {}
    of_file: dict[str, Any] = {}  # what configuration, tokenizer and weights are read with
    of_tokenizer: dict[str, Any] = {}
    of_weights: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **options}
    is_parallel = device_map == parallel.TENSOR_PARALLEL
    of_weights |= parallel.loading_options() if is_parallel else {"device_map": device_map}
    gguf = find_gguf(where)
    if gguf:
        file = GgufFile.read(gguf)
        where, of_file = str(gguf.parent), {"gguf_file": gguf.name}
        of_weights |= loading_options(dtype)
        of_tokenizer |= file.tokenizer_options
        origin = {"gguf": gguf.name, "gguf_types": file.stored_as}
    config = _read(where, "configuration", lambda: transformers.AutoConfig.from_pretrained(where, **_SAFE, **of_file))
    family = family_class(config)
    if not gguf:
        _check_files(Path(place), family)
    if not gguf and not options:  # else it is read again, since options may be the configuration's
        of_tokenizer["config"] = of_weights["config"] = config
    tokenizer = _read(
        where,
        "tokenizer",
        lambda: transformers.AutoTokenizer.from_pretrained(where, **_SAFE, **of_file, **of_tokenizer),
    )
    if tokenizer.chat_template is None and not gguf:
        tokenizer.chat_template = _older_chat_template(where)
    image_processor = _read(where, "image processor", lambda: family.load_image_processor(where))
    hf = _read_weights(where, family, of_file | of_weights)
    if gguf:
        file.check_all_are_used(hf, n_blocks=config.get_text_config().num_hidden_layers)
    elif getattr(hf, "hf_quantizer", None) is not None:
        origin["quantisation"] = str(getattr(hf.config.quantization_config.quant_method, "value", "unknown"))
    if device_map is None and hf.device != torch.device(device):
        network: nn.Module = hf
        network.to(device)
    return Parts(hf, family, tokenizer, image_processor, origin)


def _read_weights(where: str, family: type[Family], options: dict[str, Any]) -> transformers.PreTrainedModel:
    """The model itself.

    Raises:
        UnsupportedModelError: the files lack weights, for which transformers has drawn random ones.
    """
    hf, loading = _read(
        where,
        "weights",
        lambda: family.auto_class.from_pretrained(where, output_loading_info=True, **_SAFE, **options),
    )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UnsupportedModelError(
            printable(f"{where} lacks {len(missing)} of the model's weights ({some_of(missing)}), for which "
                      "transformers has put random numbers. Is the download complete, or the architecture in "
                      "config.json another one?")
        )  # fmt: skip
    return hf


def _read_adapter(folder: Path, *, base: str | None, how: dict[str, Any]) -> Parts:
    """An adapter on its base, which may be an adapter itself; its own tokenizer, where it brings one."""
    adapter = read_adapter(folder, base=base)
    if how["device_map"] == parallel.TENSOR_PARALLEL:
        raise UnsupportedModelError(
            f"{folder} is an adapter, and each process would hold only a share of the matrices that it is merged into. "
            "Merge it first: load it in one process, and save its model (hf.save_pretrained) and tokenizer"
        )
    try:
        if is_adapter(adapter.base):
            parts = _read_adapter(Path(adapter.base), base=None, how=how)
        else:
            parts = _read_parts(adapter.base, **how)
    except OSError as error:
        raise OSError(
            printable(f"{folder} is an adapter of {adapter.base}, and this base cannot be loaded: {error}. Give the "
                      "base's folder (base=, --base)")
        ) from error  # fmt: skip
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        own = str(folder)
        parts.tokenizer = _read(own, "tokenizer", lambda: transformers.AutoTokenizer.from_pretrained(own, **_SAFE))
    return adapter.put_on(parts)


_SAFE = {"trust_remote_code": False}


def _check_dtype(dtype: str | torch.dtype) -> None:
    """Raise ValueError at names that are no type of weights."""
    if dtype == "auto" or isinstance(dtype, torch.dtype) or isinstance(getattr(torch, dtype, None), torch.dtype):
        return
    raise ValueError(f"dtype is {dtype!r}; expected auto (as the weights are stored), float32, bfloat16 or float16")


def _check_device(device: str | torch.device) -> None:
    """Raise ValueError at devices that torch does not know or that are not here."""
    try:
        asked = torch.device(device)
    except RuntimeError:
        advice = " A GPU of NVIDIA or AMD is called cuda." if str(device).startswith("gpu") else ""
        raise ValueError(
            f"device is {str(device)!r}; expected cpu, cuda, cuda:1 (the second GPU) or mps.{advice}"
        ) from None
    if asked.type == "cuda" and not torch.cuda.is_available():
        build = torch.version.cuda or torch.version.hip
        why = "finds no GPU or no driver" if build else "is a build for processors only"
        raise ValueError(
            f"device is {asked}, but torch {torch.__version__} {why}. Leave the device out to compute on the "
            "processor, or install a build of torch for your GPU (pytorch.org)."
        )
    if asked.type == "cuda" and (asked.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {asked}, but the last of this machine is cuda:{torch.cuda.device_count() - 1}")
    if asked.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "device is mps, but this is no machine with Apple's GPU; leave the device out, or give another"
        )


def _check_place(place: str | Path) -> None:
    """Refuse what can be told to be no model before transformers looks.

    Raises:
        OSError: a file, a folder without a configuration, or a path where nothing is.
    """
    path = Path(place)
    if path.is_file():
        if path.suffix == ".gguf":
            return
        raise OSError(f"{path} is a file; give the folder that it is in, with config.json and *.safetensors")
    if path.is_dir():
        if not (path / "config.json").is_file() and not list(path.glob("*.gguf")):
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
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    inside += sorted(str(path.parent.relative_to(folder)) for path in folder.glob("snapshots/*/config.json"))
    advice = f"did you mean one of the folders in it: {some_of(inside)}?" if inside else "is the download complete?"
    return printable(f"{folder} has no config.json, so it is no model of transformers; {advice}")


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
    file = transformers.utils.cached_file(
        str(path_or_hub_id), "chat_template.json", _raise_exceptions_for_missing_entries=False
    )
    return str(json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]) if file else None
