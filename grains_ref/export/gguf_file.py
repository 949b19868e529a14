"""Control vectors in GGUF files, through the package `gguf` (`pip install 'grains-ref[gguf]'`).

A file has one float32 tensor (d,) for each block, `direction.N` with N from 0, and metadata: `general.architecture`
is "controlvector", `controlvector.model_hint` a text (repeng asks for it), `controlvector.layer_count` the number of
tensors, `grains_ref` our note.  llama.cpp reads no metadata, and refuses a file with any other tensor in it.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import torch

from grains_ref.export.readers import by_block, first_line
from grains_ref.export.target import NOTE, Directions, ExportError, note_of, with_note

ARCHITECTURE = "controlvector"
PREFIX = "direction."  # of a tensor's name, before the number of its block
MOST_ENTRIES = 20_000  # of tensors, of keys, of values in one list: a model has at most some hundred blocks


def gguf_bytes(directions: Directions) -> bytes:
    """The content of a file.

    Raises:
        ImportError: the package gguf is missing.
    """
    gguf = _package()
    with tempfile.TemporaryDirectory() as folder:  # the package writes to a path
        path = Path(folder) / "vectors.gguf"
        writer = gguf.GGUFWriter(path, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", _hint(directions))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions.by_block))
        writer.add_string(NOTE, note_of(directions))
        for block in directions.blocks:
            writer.add_tensor(f"{PREFIX}{block}", directions.by_block[block].numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def read_gguf(content: bytes, name: str) -> Directions:
    """The vectors of a file, whoever wrote it.

    Raises:
        ExportError: it is damaged, no GGUF file, or holds other things than control vectors.
        ImportError: the package gguf is missing.
    """
    gguf = _package()
    _check_counts(content, name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.gguf"
        path.write_bytes(content)
        try:
            reader = _bounded_reader(gguf)(path)
            items = [(tensor.name.removeprefix(PREFIX), _values(gguf, tensor)) for tensor in reader.tensors]
            field = reader.get_field(NOTE)
            note = field.contents() if field else None
        except ExportError as error:
            raise ExportError(f"{name}: {error}") from error
        except Exception as error:  # the package's reader trusts its file, and fails in many ways
            reason = first_line(error)
            raise ExportError(f"{name} is truncated, corrupt or no GGUF file ({reason}); copy it again") from error
    return with_note(by_block(items, name=name), note, name=name)


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f"GGUF files need the package gguf ({error}): pip install 'grains-ref[gguf]'") from error
    return gguf


def _hint(directions: Directions) -> str:
    """What the file calls its model: a hint for people; no tool decides by it."""
    return Path(directions.header.model_name).name if directions.header else "unknown"


def _values(gguf: Any, tensor: Any) -> torch.Tensor:
    if not tensor.name.startswith(PREFIX):
        raise ExportError(f"the tensor {tensor.name[:60]!r} is no control vector; is it a file of weights?")
    if tensor.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        raise ExportError(f"{tensor.name} is {tensor.tensor_type.name}; expected F32")
    return torch.from_numpy(tensor.data.copy())


def _check_counts(content: bytes, name: str) -> None:
    """Refuse counts that would keep the reader busy for ever."""
    if len(content) < 24 or content[:4] != b"GGUF":
        raise ExportError(f"{name} is no GGUF file: it does not begin with GGUF")
    _, n_tensors, n_keys = struct.unpack_from("<IQQ", content, 4)
    if max(n_tensors, n_keys) > MOST_ENTRIES:
        raise ExportError(
            f"{name} claims {n_tensors} tensors and {n_keys} keys; at most {MOST_ENTRIES} are read. Is it damaged?"
        )


def _bounded_reader(gguf: Any) -> Any:
    """The package's reader, which goes through lists of any length that a file claims, past its end too."""

    class BoundedReader(gguf.GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == gguf.GGUFValueType.ARRAY:
                kind, length = struct.unpack("<IQ", self.data[orig_offs : orig_offs + 12].tobytes())
                if length > MOST_ENTRIES or kind == gguf.GGUFValueType.ARRAY:
                    raise ExportError(f"a list of {length} values in the metadata; at most {MOST_ENTRIES} are read")
            return super()._get_field_parts(orig_offs, raw_type)

    return BoundedReader
