"""Adapters in peft's format, LoRA above all: a folder with adapter_config.json, put on the base that it was trained on.

    W  ->  W + (alpha / rank) B A

The adapter is merged into the weights, rounded once to their type, so that hooks, caches and engines see a plain model.
Where the base is quantised nothing can be merged without quantising again; there peft's layers stay beside the weights.

No base is taken on trust: every tensor of the adapter must have its place in it, and every place its tensor.  A base of
the same shape that was trained otherwise cannot be told; its fingerprint goes into the header.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from grains_ref.files import digest_of, printable, some_of
from grains_ref.models import weights
from grains_ref.models.blocks import find_decoder
from grains_ref.models.families import UnsupportedModelError
from grains_ref.models.sources import Parts

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder, and the folder or hub id of the base that it goes on."""

    folder: Path
    base: str

    def put_on(self, parts: Parts) -> Parts:
        """The base with the adapter in it.

        Raises:
            ImportError: peft is missing.
            UnsupportedModelError: it is no adapter of the weights, or it belongs to another base.
        """
        peft = _package()
        config = peft.PeftConfig.from_pretrained(str(self.folder))
        if config.is_prompt_learning:
            raise UnsupportedModelError(
                f"{self.folder} is an adapter of kind {config.peft_type.value}: it puts learned tokens in front of the "
                "prompt, which are no words to attribute. Adapters that change weights (LoRA) are taken"
            )
        decoder = find_decoder(parts.hf, parts.hf.config.get_text_config().num_hidden_layers)
        base_fingerprint = weights.fingerprint(parts.hf, decoder, sees=bool(parts.family.marker))
        hf = self._merged(peft, parts)
        origin = {
            "adapter": self.folder.resolve().name,
            "adapter_digest": digest_of((self.folder / CONFIG).read_bytes() + (self.folder / WEIGHTS).read_bytes()),
            "base": self.base,
            "base_fingerprint": base_fingerprint,
        }
        return Parts(hf, parts.family, parts.tokenizer, parts.image_processor, parts.origin | origin)

    def _merged(self, peft: Any, parts: Parts) -> Any:
        base = parts.hf
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
                warnings.filterwarnings("ignore", category=FutureWarning)  # of what peft asks transformers
                wrapped = peft.PeftModel.from_pretrained(base, str(self.folder), torch_device=str(base.device))
        except (RuntimeError, ValueError, KeyError) as error:
            problem = " ".join(str(error).split())
            raise UnsupportedModelError(self._misfit(f"peft says: {problem:.300}")) from error
        with safe_open(self.folder / WEIGHTS, framework="pt") as file:
            stored = set(file.keys())
        placed = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        if stored - placed:
            raise UnsupportedModelError(self._misfit(f"the base has no place for {some_of(sorted(stored - placed))}"))
        if placed - stored:
            raise UnsupportedModelError(self._misfit(f"the adapter has nothing for {some_of(sorted(placed - stored))}"))
        if parts.origin.get("quantisation"):
            return wrapped.get_base_model()
        try:
            return wrapped.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError, AttributeError) as error:
            raise UnsupportedModelError(f"{self.folder} cannot be merged into {self.base}: {error}") from error

    def _misfit(self, why: str) -> str:
        return printable(
            f"the adapter {self.folder} was not trained on {self.base}: {why}. Give the base that it was trained on "
            "(base=, --base)"
        )


def is_adapter(place: str) -> bool:
    """Whether this is an adapter's folder."""
    return (Path(place) / CONFIG).is_file()


def read_adapter(folder: Path, *, base: str | None) -> Adapter:
    """An adapter with the base that is given, or the one that it names.

    Raises:
        OSError: it names no base, or its weights are missing or pickled.
    """
    named = None
    try:
        named = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise OSError(printable(f"{folder / CONFIG} is no record of peft's: {error}. Get the files again")) from error
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        why = "is the download complete?"
        if pickled:
            why = f"{some_of(pickled)} is never read: a pickle can run code. Save it as safetensors where you trust it"
        raise OSError(printable(f"{folder} is an adapter without {WEIGHTS}; {why}"))
    if base is None and not named:
        raise OSError(printable(f"{folder} is an adapter that names no base; give the model that it was trained on "
                                "(base=, --base)"))  # fmt: skip
    if base is not None and named and Path(base).name != Path(str(named)).name:
        warnings.warn(
            printable(f"the adapter {folder} says that it was trained on {named}, and is put on {base}"), stacklevel=4
        )
    return Adapter(folder, base if base is not None else str(named))


def _package() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"adapters need the package peft ({error}): pip install 'grains-ref[baselines]'") from error
    return peft
