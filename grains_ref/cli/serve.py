"""`grains-ref serve`: a model behind an OpenAI-compatible address, each request steered as it asks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grains_ref.cli import common, console
from grains_ref.cli.common import BaseOption, DateOption, DeviceMapOption, DeviceOption, DtypeOption, ForceOption

if TYPE_CHECKING:
    from grains_ref.export.serving.served import ServedVectors
    from grains_ref.models import HuggingFaceModel
    from grains_ref.vectors import SteeringVectors

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@console.guarded
def serve(
    model: Annotated[str, typer.Argument(help="A local folder, a hub id, or tiny:NAME.", show_default=False)],
    vectors: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="Vectors under a name; may be repeated.")
    ] = None,
    lam: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LAM", help="Strength of vectors where a request says none. (as the file has it)"),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.", min=0, max=65535)] = 8000,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen on an address that other machines reach. No authentication!")
    ] = False,
    rows: Annotated[int, typer.Option(help="Answers that are computed at once.", min=1)] = 64,
    waiting: Annotated[int, typer.Option(help="Answers that may wait for that; more are refused.", min=1)] = 1024,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 4096,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.", min=1024)] = 4 << 20,
    force: ForceOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    device_map: DeviceMapOption = "",
    base: BaseOption = "",
    date: DateOption = "",
) -> None:
    """Serve a model with an OpenAI-compatible interface; vectors, lam and layers by request. See docs/serving.md."""
    from grains_ref.export.serving.asked import Limits

    files = _by_name(vectors or [], "--vectors", "FILE")
    strengths = {name: _strength(name, text) for name, text in _by_name(lam or [], "--lam", "LAM").items()}
    if strangers := sorted(strengths.keys() - files.keys()):
        raise ValueError(f"--lam {strangers[0]}=...: there are no --vectors of that name")
    from grains_ref.export.serving.server import LOOPBACK, application  # refuses where the libraries are missing

    is_local = host in LOOPBACK
    if not is_local and not allow_remote:
        raise ValueError(
            f"--host {host} can be reached from other machines, and nothing asks who they are. If that is meant, give "
            f"--allow-remote too; otherwise leave --host out"
        )
    loaded = {name: _read(Path(file)) for name, file in files.items()}
    limits = Limits(rows=rows, waiting=waiting, new_tokens=max_new_tokens, body=max_body)
    wrapped = common.load_model(model, dtype, device, device_map, date, base)
    from grains_ref.export.serving.served import Served

    fitted = {name: _fitted(wrapped, name, one, strengths.get(name), force=force) for name, one in loaded.items()}
    served = Served(wrapped, fitted, limits)
    if not is_local:
        console.err.print(
            f"warning: anyone who reaches {host} can use this server; there is no authentication", style="yellow"
        )
    _run(application(served, hosts=LOOPBACK if is_local else None), host, port, served.names)


def _run(app: object, host: str, port: int, names: Sequence[str]) -> None:
    """Listen until interrupted."""
    import uvicorn

    class Server(uvicorn.Server):
        """Says where it listens, also where the system chose the port."""

        async def startup(self, sockets: object = None) -> None:
            await super().startup(sockets)  # type: ignore[arg-type]
            for server in self.servers:
                place = server.sockets[0].getsockname()
                host_of_address = f"[{place[0]}]" if ":" in place[0] else place[0]
                console.out.print(f"serving {', '.join(names)}")
                console.out.print(f"http://{host_of_address}:{place[1]}/v1")

    config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False)  # type: ignore[arg-type]
    Server(config).run()


def _by_name(given: Sequence[str], option: str, what: str) -> dict[str, str]:
    """'NAME=VALUE' each.

    Raises:
        ValueError: something else, or a name twice.
    """
    values: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value or not _NAME.fullmatch(name):
            raise ValueError(
                f"{option} {text[:80]!r}: expected NAME={what}, where NAME is letters, digits, '.', '_' and '-'"
            )
        if name in values:
            raise ValueError(f"{option}: {name} is given twice")
        values[name] = value
    return values


def _strength(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"--lam {name}={text[:40]}: expected a finite number")
    return value


def _read(path: Path) -> SteeringVectors:
    from grains_ref.vectors import SteeringVectors

    return SteeringVectors.load(path)


def _fitted(
    model: HuggingFaceModel, name: str, vectors: SteeringVectors, lam: float | None, *, force: bool
) -> ServedVectors:
    """Vectors that belong to the model, with what their file says of strength and layers.

    Raises:
        ValueError: they belong to another model, or steer elsewhere than the output of the blocks.
    """
    from grains_ref.export.serving.served import ServedVectors
    from grains_ref.methods.from_file import GRAINS, site_of
    from grains_ref.vectors import check_fits

    site_of(vectors)
    if vectors.header.method != GRAINS:
        raise ValueError(
            f"--vectors {name}: made by {vectors.header.method}; a server steers the output of blocks at all "
            "positions, as GrAInS does, and nothing else"
        )
    check_fits(
        vectors,
        n_layers=len(model.blocks),
        width=model.width,
        fingerprint=model.fingerprint(),
        model_name=model.name,
        force=force,
        chat_template=model.prompts.template_digest,
        date=model.prompts.date,
    )
    stored = vectors.header.choice
    if lam is None and stored:
        lam = float(stored["lam"])
    layers = tuple(stored["layers"]) if stored else tuple(range(len(model.blocks)))
    return ServedVectors(vectors.v, lam, layers)
