"""SGLang: forward hooks that the server makes of a JSON file; all requests are steered.

The file is a list with one hook for each block.  SGLang calls `make_hook` with the hook's `config`, which names the
vectors file: that file must stay where it is, and grains_ref must be installed beside SGLang.

Convention: SGLang's blocks return (hidden, residual), whose sum is the output of the block; the sum is steered.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from grains_ref.export import rules
from grains_ref.export.readers import first_line
from grains_ref.export.target import Asked, Directions, ExportError, Target, Use
from grains_ref.files import FileError, digest_of, parse_json, read_whole
from grains_ref.vectors import SteeringVectors, VectorError
from grains_ref.vectors.header import is_finite_number

BLOCK = "model.layers.{i}"
FACTORY = "grains_ref.export.sglang:make_hook"
CONFIG = ("vectors", "vectors_sha256", "layer", "lam")


def make_hook(config: dict[str, Any]) -> Callable[[nn.Module, Any, Any], Any]:
    """Equations (7) and (8) after one block, as a forward hook of SGLang.

    Raises:
        ExportError: a key is missing, or the vectors file is missing, another than that of the export, or damaged.
    """
    missing = [key for key in CONFIG if key not in config]
    if missing:
        raise ExportError(f"the hook's config lacks {missing}; expected {list(CONFIG)}")
    layer, lam = config["layer"], config["lam"]
    vectors = _vectors(str(config["vectors"]), str(config["vectors_sha256"]))
    if type(layer) is not int or not 0 <= layer < vectors.n_layers or not is_finite_number(lam):
        raise ExportError(f"layer {layer!r} and lam {lam!r}: expected a layer below {vectors.n_layers} and a number")
    return hook_of(vectors.v[layer], lam)


def hook_of(v: Tensor, lam: float) -> Callable[[nn.Module, Any, Any], Any]:
    """Equations (7) and (8) with this v (d,), after one block."""

    def hook(block: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal v
        hidden, residual = output if isinstance(output, tuple) else (output, None)
        v = v.to(hidden.device)
        if residual is None:
            steered = rules.restore_norm(hidden, v, lam)
        else:
            h = hidden + residual
            steered = rules.restore_norm(h, v, lam) - residual
        return (steered, residual) if isinstance(output, tuple) else steered

    return hook


@functools.lru_cache(maxsize=2)
def _vectors(path: str, digest: str) -> SteeringVectors:
    content = _content(path)
    if digest_of(content) != digest:
        raise ExportError(f"{path} is another vectors file than the one that was exported. Export it again")
    try:
        return SteeringVectors.load(path)
    except VectorError as error:
        raise ExportError(str(error)) from error


def _content(path: str) -> bytes:
    try:
        return read_whole(Path(path))
    except FileError as error:
        raise ExportError(f"the vectors file of an export: {error}. Put it back, or export again") from error


def write(directions: Directions, asked: Asked) -> bytes:
    """A list of hooks in JSON.

    Raises:
        ExportError: the vectors file cannot be read.
    """
    path = asked.vectors.resolve()
    digest = digest_of(_content(str(path)))
    hooks = []
    for block in directions.blocks:
        hooks.append(
            {
                "name": f"grains block {block}",
                "target_modules": [asked.module(BLOCK, block)],
                "hook_factory": FACTORY,
                "config": {"vectors": str(path), "vectors_sha256": digest, "layer": block, "lam": directions.strength},
            }
        )
    return (json.dumps(hooks, indent=1) + "\n").encode()


def read(content: bytes, name: str) -> Directions:
    """What the hooks of a file steer with, out of the vectors file that they name.

    Raises:
        ExportError: it is no such list, or see `make_hook`.
    """
    try:
        hooks = parse_json(content)
        factories = {str(hook["hook_factory"]) for hook in hooks}
        configs = [hook["config"] for hook in hooks]
        settings = [(str(c["vectors"]), str(c["vectors_sha256"]), c["layer"], c["lam"]) for c in configs]
    except (ValueError, TypeError, KeyError) as error:
        reason = first_line(error)
        raise ExportError(f"{name} is no list of hooks of `grains-ref export --to sglang` ({reason})") from None
    by_block: dict[int, Tensor] = {}
    lams = {lam if is_finite_number(lam) else None for *_, lam in settings}
    if factories != {FACTORY} or len(lams) != 1 or None in lams:
        raise ExportError(f"{name} does not have hooks of {FACTORY} alone, all of one strength")
    header = None
    for path, digest, layer, _ in settings:
        vectors = _vectors(path, digest)
        if type(layer) is not int or not 0 <= layer < vectors.n_layers:
            raise ExportError(f"{name}: {path} has no layer {layer!r}")
        if layer in by_block:
            raise ExportError(f"{name}: block {layer} is there twice")
        by_block[layer], header = vectors.v[layer], vectors.header
    return Directions(by_block=by_block, lam=lams.pop(), header=header)


def usage(path: Path, directions: Directions) -> str:
    """The command that starts a server."""
    return f'python -m sglang.launch_server --model-path MODEL --forward-hooks "$(cat {shlex.quote(str(path))})"'


TARGET = Target(
    name="sglang",
    tool="SGLang",
    suffix="",
    uses=(Use(name="forward hooks", rule=rules.restore_norm),),
    write=write,
    read=read,
    usage=usage,
    keeps_lam=True,
    block_name=BLOCK,
)
