"""What several commands share: their options, and reading models, pairs, vectors and settings.

Everything heavy is imported inside functions, so that a command which needs no model starts fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from grains_ref.cli.console import err
from grains_ref.cli.lists import Layers, parse_layers, write_layers
from grains_ref.files.processes import model_is_spread, own_device

if TYPE_CHECKING:
    from grains_ref.data import PairFile, Task
    from grains_ref.fast import EngineName
    from grains_ref.grains import Hooks, HyperParameters
    from grains_ref.methods.edit_gradient import EditPositions, EditSite
    from grains_ref.models import HuggingFaceModel, Prompt
    from grains_ref.vectors import SteeringVectors

# ------------------------------------------------------------------------------------- options
ModelOption = Annotated[
    str,
    typer.Option("--model", help="A local folder, a hub id, or tiny:NAME for an embedded model.", show_default=False),
]
DtypeOption = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16 or float64.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
DeviceMapOption = Annotated[
    str,
    typer.Option(
        help="'auto' spreads the model over several devices (needs accelerate), 'tensor_parallel' every matrix over "
        "torchrun's processes.",
        show_default=False,
    ),
]
BaseOption = Annotated[
    str,
    typer.Option(
        "--base",
        help="The base of an adapter: folder or hub id. (default: as adapter_config.json names it)",
        show_default=False,
    ),
]
DateOption = Annotated[
    str,
    typer.Option(
        "--date",
        help="What chat templates that write today's date write: 2024-07-26. (default: today)",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
SkipOption = Annotated[bool, typer.Option("--skip-bad-rows", help="Report bad rows and go on without them.")]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="A column of the pairs or tasks to leave unread although it holds content."),
]
PresetOption = Annotated[
    str, typer.Option(help="paper_llm, paper_vlm or paper_gemma. (default: by the model's family)", show_default=False)
]
KOption = Annotated[int | None, typer.Option(help="Tokens per sign. (from the preset)", show_default=False)]
MOption = Annotated[int | None, typer.Option(help="Quadrature steps. (from the preset)", show_default=False)]
BaselineOption = Annotated[str, typer.Option(help="zero, mean or token:WORD.", show_default=False)]
EligibleOption = Annotated[
    list[str] | None, typer.Option(help="Narrow the candidates: content, no_special, not_last, text, image.")
]
EngineOption = Annotated[str, typer.Option("--engine", help="fast, or reference: one gradient at a time.")]
SteeringEngineOption = Annotated[
    str, typer.Option("--engine", help="Which code steers: fast, or reference; on a CPU they agree bit for bit.")
]
MemoryOption = Annotated[
    str, typer.Option("--memory", help="What the fast engine may take: a share of the free memory, or 8GiB.")
]
MethodOption = Annotated[str, typer.Option(help="grains, or edit_gradient (with --site and --positions).")]
SiteOption = Annotated[
    str,
    typer.Option(
        help="Of the edit gradient: residual, attention_output, heads or mlp. (default: attention_output)",
        show_default=False,
    ),
]
PositionsOption = Annotated[
    str,
    typer.Option(help="Of the edit gradient: all or after_prompt. (default: after_prompt)", show_default=False),
]
ChatOption = Annotated[bool, typer.Option("--chat", help="Send the prompt through the model's chat template.")]
LamOption = Annotated[
    float | None, typer.Option(help="Strength. (default: as 'sweep --out' stored it)", show_default=False)
]
LayersOption = Annotated[
    str,
    typer.Option(
        help="Layers to steer: 'all', or for instance '8-15,20'. (default: as 'sweep --out' stored them, else all)",
        show_default=False,
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Accept vectors of a model with another fingerprint.")]


# ------------------------------------------------------------------------------------- engine
def engine_name(name: str, memory: str = "80%") -> EngineName:
    """Check both options before a model is loaded.

    Raises:
        ValueError: there is no such engine, or the share cannot be read.
    """
    from grains_ref.fast import ENGINES
    from grains_ref.fast.memory import parse_share

    parse_share(memory)
    for known in ENGINES:
        if name == known:
            return known
    raise ValueError(f"--engine {name!r} does not exist; there are {', '.join(ENGINES)}")


# ------------------------------------------------------------------------------------- models
def model_path(model: str) -> str:
    """The folder of an embedded tiny model; any other model as it is named.

    Raises:
        ValueError: there is no such embedded model.
    """
    import grains_ref.tiny_models as tiny_models

    if not model.startswith("tiny:"):
        return model
    root = Path(tiny_models.__file__).parent
    path = root / model.removeprefix("tiny:")
    if not (path / "model.safetensors").is_file():
        names = sorted(f"tiny:{file.parent.name}" for file in root.glob("*/model.safetensors"))
        raise ValueError(f"there is no embedded model {model!r}; there are {', '.join(names)}")
    return str(path)


def load_model(
    model: str, dtype: str, device: str, device_map: str, date: str = "", base: str = ""
) -> HuggingFaceModel:
    """A model by folder, hub id, or the name of an embedded tiny one.

    Only a download has a progress bar; the bars of transformers itself are switched off.
    """
    path = model_path(model)
    import huggingface_hub.utils
    import transformers

    from grains_ref.models import load
    from grains_ref.models.parallel import TENSOR_PARALLEL

    shows_downloads = not huggingface_hub.utils.are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()  # it switches off the bars of downloads as well
    waiting: AbstractContextManager[object] = err.status(Text(f"loading {model}"))
    if shows_downloads and not Path(path).is_dir():
        huggingface_hub.utils.enable_progress_bars()
        err.print(f"loading {model}; what is not in the hub's cache is downloaded")
        waiting = nullcontext()
    with waiting:
        wrapped = load(
            path,
            dtype=dtype,
            device=own_device(device),
            device_map=device_map or None,
            base=base or None,
            date=date or None,
        )
    if device_map == TENSOR_PARALLEL:
        model_is_spread()
    return wrapped


def as_prompt(text: str, *, chat: bool) -> Prompt:
    """A prompt as it was typed, or as the message of a user."""
    return [{"role": "user", "content": text}] if chat else text


# ------------------------------------------------------------------------------------- settings
def hyper_parameters(
    preset: str, *, eligible: Sequence[str] | None, **given: Any
) -> Callable[[HuggingFaceModel], HyperParameters]:
    """Check preset and options before a model is loaded; what comes back gives the hyper-parameters for the model.

    Without a preset the model's family decides.

    Args:
        preset: a name, or "".
        eligible: the rules that narrow the candidates.
        given: other fields of `HyperParameters`; None and "" leave what the preset says.

    Raises:
        ValueError: the preset does not exist, or a value is not allowed.
    """
    from grains_ref.grains import PRESETS

    if preset and preset not in PRESETS:
        raise ValueError(f"preset {preset!r} does not exist; there are {', '.join(PRESETS)}")
    changes = {name: value for name, value in given.items() if value is not None and value != ""}
    if eligible:
        changes["eligible"] = tuple(eligible)
    replace(PRESETS[preset or "paper_llm"], **changes)  # the check
    return lambda model: replace(PRESETS[preset or model.family.preset], **changes)


GRAINS, EDIT_GRADIENT = "grains", "edit_gradient"  # what --method takes, and what a vectors file says


@dataclass(frozen=True)
class EditOptions:
    """Where the edit gradient edits."""

    site: EditSite
    positions: EditPositions


def edit_of(method: str, site: str, positions: str, of_grains: Mapping[str, Any]) -> EditOptions | None:
    """Where the edit gradient edits; None if the method is GrAInS.

    of_grains: options that only GrAInS has; None, "" and [] are such as were not given.

    Raises:
        ValueError: there is no such method, site or positions, or an option of the other method is given.
    """
    if method not in (GRAINS, EDIT_GRADIENT):
        raise ValueError(f"--method is {method!r}; expected {GRAINS} or {EDIT_GRADIENT}")
    if method == GRAINS:
        if site or positions:
            raise ValueError(
                f"--site and --positions belong to --method {EDIT_GRADIENT}; GrAInS edits the output of every block, "
                "at all positions"
            )
        return None
    given = [f"--{name.replace('_', '-')}" for name, value in of_grains.items() if value not in (None, "", [])]
    if given:
        raise ValueError(f"{', '.join(given)}: of GrAInS; --method {EDIT_GRADIENT} takes --site and --positions")
    from grains_ref.methods.edit_gradient import as_positions, as_site

    return EditOptions(as_site(site or "attention_output"), as_positions(positions or "after_prompt"))


@dataclass(frozen=True)
class VectorsInUse:
    """Vectors from a file, with the strength and the layers to use them at."""

    vectors: SteeringVectors
    lam: float
    layers: Layers

    @property
    def words(self) -> str:
        """Strength and layers, for people."""
        return f"lam {self.lam:g}, layers {self.layers.text}"

    def steering(self, model: HuggingFaceModel, *, force: bool, chat: bool, engine: EngineName = "fast") -> Hooks:
        """The edit that the file stands for, at its site and positions, for this model.

        force: accept another fingerprint.  chat: whether prompts go through the model's chat template.  engine: see
        `steering_of`.

        Raises:
            ValueError: the vectors belong to another model, or a layer does not exist.
        """
        from grains_ref.methods.from_file import steering_of, width_at_site
        from grains_ref.vectors import check_fits

        n_layers = len(model.blocks)
        check_fits(
            self.vectors,
            n_layers=n_layers,
            width=width_at_site(model, self.vectors),
            fingerprint=model.fingerprint(),
            model_name=model.name,
            force=force,
            chat_template=model.prompts.template_digest if chat else "",
            date=model.prompts.date if chat else "",
        )
        layers = self.layers.of(n_layers)
        return steering_of(model, self.vectors, lam=self.lam, layers=layers, engine=engine)


def read_vectors(path: Path, lam: float | None, layers: str) -> VectorsInUse:
    """Vectors with strength and layers as given, or as a sweep stored them.

    Raises:
        ValueError: no vectors file, no strength given or stored, or strength or layers that cannot be read.
    """
    from grains_ref.vectors import SteeringVectors

    if lam is not None and not math.isfinite(lam):
        raise ValueError(f"--lam is {lam}; expected a finite number")
    vectors = SteeringVectors.load(path)
    stored = vectors.header.choice
    if lam is None:
        if not stored:
            raise ValueError(
                f"{path} holds no strength: give one with --lam, or choose one with 'grains-ref sweep --out'"
            )
        lam = float(stored["lam"])
        err.print(f"lam {lam:g}, as the sweep stored it in {path}")
    if not layers and stored:
        layers = write_layers(stored["layers"])
        err.print(f"layers {layers}, as the sweep stored them in {path}")
    return VectorsInUse(vectors, lam, parse_layers(layers or "all"))


# ------------------------------------------------------------------------------------- files
def read_pair_file(path: Path, *, skip_bad_rows: bool, ignore: Sequence[str] | None = None) -> PairFile:
    """Preference pairs; rows that were skipped are reported, and columns that nothing reads."""
    from grains_ref.data import read_pairs

    file = read_pairs(path, skip_bad_rows=skip_bad_rows, ignore=ignore or ())
    for remark in file.remarks:
        err.print(remark, style="yellow")
    report_skipped(file.skipped)
    return file


def read_task_file(path: Path | None, *, ignore: Sequence[str] | None) -> tuple[Task, ...]:
    """Tasks, none without a file; columns that nothing reads are reported."""
    from grains_ref.data import read_tasks

    if path is None:
        return ()
    file = read_tasks(path, ignore=ignore or ())
    for remark in file.remarks:
        err.print(remark, style="yellow")
    return file.tasks


AS_MESSAGES = "give each prompt as 'messages', a list of turns (docs/data.md)."


def note_plain_texts(model: HuggingFaceModel, prompts: Iterable[object], *, instead: str) -> None:
    """Say it if a chat model is given texts without its template: its answers are then seldom those of a chat."""
    if model.prompts.template_digest and all(isinstance(prompt, str) for prompt in prompts):
        err.print(
            "note: this model has a chat template, and your prompts are plain texts, which it reads without the "
            f"template. If it is to answer them as in a chat, {instead}",
            style="yellow",
        )


def report_skipped(problems: Sequence[Exception]) -> None:
    """The first ten problems, and how many more there are."""
    if not problems:
        return
    err.print(f"skipped {len(problems)} bad rows:", style="yellow")
    for problem in problems[:10]:
        err.print(f"  {problem}")
    if len(problems) > 10:
        err.print(f"  and {len(problems) - 10} more")
