"""Models in the format of llama.cpp (GGUF), read by transformers' own loader, which turns them into plain weights.

Quantised blocks become numbers of the type that was asked for, float32 unless told otherwise: a half would round what
the blocks say a second time, and no file says that it wants that.

transformers overlooks what it has no name for.  What would change the numbers is refused here by its name in the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from grains_ref.files import printable, some_of
from grains_ref.models.families import UnsupportedModelError

_BLOCK = re.compile(r"blk\.(\d+)\.")
_PART = re.compile(r"-\d{5}-of-\d{5}$")
# Tensors and fields by which rotary angles are stretched; llama.cpp uses them, transformers' loader does not.
_STRETCHING = re.compile(r"^rope_(freqs|factors)|\.rope\.scaling\.(type|factor)$")
_STRETCHES_NOT = ("none", 1.0)
_STRETCHED_BY_TRANSFORMERS = {"gpt-oss"}  # architectures whose stretching its loader does read


def find_gguf(place: str) -> Path | None:
    """The one GGUF file that a path names: itself, or in a folder without config.json; None if there is none.

    Raises:
        OSError: there are several, or it is a part of one.
    """
    path = Path(place)
    if path.is_file():
        files = [path] if path.suffix == ".gguf" else []
    elif path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
    else:
        files = []
    if not files:
        return None
    if _PART.search(files[0].stem):
        raise OSError(
            printable(f"{files[0]} is a part of a model, and transformers reads whole ones: join the parts with "
                      "llama.cpp's 'llama-gguf-split --merge', and give the result")
        )  # fmt: skip
    if len(files) > 1:
        raise OSError(
            printable(f"{path} holds {len(files)} models, {some_of([file.name for file in files])}; give one file")
        )
    return files[0]


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says of its tensors.

    stored_as: their types, for instance "Q4_K, Q6_K, F32", that of most numbers first.
    """

    path: Path
    stored_as: str
    n_numbers: dict[str, int] = field(repr=False)  # of every tensor, by its name in the file
    tokenizer_options: dict[str, bool] = field(default_factory=dict)  # what some versions of transformers overlook

    @classmethod
    def read(cls, path: Path) -> GgufFile:
        """Look through the file's table of contents.

        Raises:
            ImportError: the package gguf is missing.
            OSError: it is no GGUF file.
            UnsupportedModelError: it stretches rotary angles, which transformers would overlook.
        """
        gguf = _package()
        try:
            reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise OSError(printable(f"{path} cannot be read as GGUF: {error}. Get the file again")) from error
        architecture = str(reader.fields["general.architecture"].contents())
        names = [tensor.name for tensor in reader.tensors]
        names += [name for name in reader.fields if reader.fields[name].contents() not in _STRETCHES_NOT]
        stretching = [name for name in names if _STRETCHING.search(name)]
        if stretching and architecture not in _STRETCHED_BY_TRANSFORMERS:
            raise UnsupportedModelError(
                f"{path.name} stretches rotary angles ({some_of(stretching)}), which transformers' loader of GGUF does "
                "not read: every number would be a little wrong, and those of long prompts very. Give the model that "
                "it was converted from"
            )
        of_type: dict[str, int] = {}
        for tensor in reader.tensors:
            of_type[tensor.tensor_type.name] = of_type.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
        types = sorted(of_type, key=lambda name: -of_type[name])
        n_numbers = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
        options: dict[str, bool] = {}
        adds_bos = reader.fields.get("tokenizer.ggml.add_bos_token")
        if adds_bos and architecture != "gemma4":  # whose files say yes where its own tokenizer adds none
            options["add_bos_token"] = bool(adds_bos.contents())
        return cls(path, ", ".join(types), n_numbers, options)

    def check_all_are_used(self, hf: nn.Module, *, n_blocks: int) -> None:
        """Refuse a model that has fewer numbers than the file: transformers passes over tensors that it cannot place.

        Blocks behind the decoder's last one, which predict several tokens at once, are left out on purpose.

        Raises:
            UnsupportedModelError: some are not used.
        """
        in_file = 0
        for name, n in self.n_numbers.items():
            block = _BLOCK.match(name)
            if block is None or int(block[1]) < n_blocks:
                in_file += n
        in_model = sum(parameter.numel() for parameter in hf.parameters())
        if in_file > in_model:
            raise UnsupportedModelError(
                f"{self.path.name} holds {in_file:,} numbers, and the model that transformers makes of it has "
                f"{in_model:,}: it has no place for the others, biases for instance, and would leave them out. Give "
                "the model that it was converted from"
            )


def loading_options(dtype: str | torch.dtype) -> dict[str, Any]:
    """More arguments of `from_pretrained`: the type, and that blocks are unpacked even where a kernel takes them."""
    options: dict[str, Any] = {"dtype": torch.float32 if dtype == "auto" else dtype}
    packed = getattr(transformers, "GgufConfig", None)  # newer versions can leave weights in blocks
    if packed is not None:
        options["quantization_config"] = packed(dequantize=True)
    return options


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f"GGUF files need the package gguf ({error}): pip install 'grains-ref[gguf]'") from error
    return gguf
