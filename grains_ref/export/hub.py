"""Steering vectors as a folder, or a repository of the Hugging Face hub, with a model card written from the header.

    SharedVectors(vectors, behaviour="repeats fewer rumours").push_to_hub("me/fewer-rumours")
    vectors = SharedVectors.from_pretrained("me/fewer-rumours").vectors

`save_pretrained`, `from_pretrained` and `push_to_hub` are those of huggingface_hub's `ModelHubMixin`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download

from grains_ref.files import FileError, printable, read_whole, write_whole
from grains_ref.report.markdown import markdown_table
from grains_ref.vectors import Header, SteeringVectors, VectorFileError
from grains_ref.vectors.header import is_finite_number

FILE = "vectors.safetensors"
CARD = "README.md"
CONFIG = {"format": "grains_ref steering vectors", "file": FILE}
CONFIG_FILE = "config.json"
CONFIG_TEXT = json.dumps(CONFIG, sort_keys=True, indent=2)  # as the mixin writes it
FEW_EXAMPLES = 20
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class SharedVectors(
    ModelHubMixin,
    library_name="grains_ref",
    tags=["steering-vectors", "activation-steering"],
    paper_url="https://arxiv.org/abs/2507.18043",
):
    """Vectors to be shared.

    Attributes:
        vectors: what is shared.
        behaviour: what they do to a model, in a few words, for the card; the header does not know it.
    """

    _hub_mixin_config = CONFIG  # what config.json says; without it the mixin would write the arguments into it

    def __init__(self, vectors: SteeringVectors, *, behaviour: str = "") -> None:
        self.vectors, self.behaviour = vectors, behaviour

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Vectors, card and config.json into a folder; see `ModelHubMixin.save_pretrained`.

        Raises:
            VectorFileError: the folder holds a card that somebody has edited, or of other vectors, or a config.json
                of something else, such as a model: the mixin would delete it.
        """
        folder = Path(save_directory)
        _refuse_another(folder / CONFIG_FILE, CONFIG_TEXT, "config.json than that of vectors (of a model?).")
        _refuse_another(folder / CARD, str(self.generate_model_card()), "model card than the one to be written.")
        written: str | None = super().save_pretrained(save_directory, **options)
        return written

    def _save_pretrained(self, save_directory: Path) -> None:
        """Vectors and card, each written whole."""
        self.vectors.save(save_directory / FILE)
        write_whole(save_directory / CARD, str(self.generate_model_card()))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> SharedVectors:
        """Vectors out of a folder or a repository.

        The mixin would read config.json first, which holds nothing that the vectors' own header does not say.

        Raises:
            VectorFileError: the file is missing, damaged or of another kind.
            huggingface_hub.errors.HfHubHTTPError, OSError: the hub cannot be reached, or has no such repository.
        """
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        given: dict[str, Any] = dict.fromkeys(known) | {"force_download": False, "local_files_only": False} | options
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **given)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **more: Any,
    ) -> SharedVectors:
        """Vectors out of a folder or a repository.

        Raises:
            VectorFileError: the file is missing, damaged or of another kind.
            huggingface_hub.errors.HfHubHTTPError, OSError: the hub cannot be reached, or has no such repository.
        """
        path = Path(model_id) / FILE
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    model_id,
                    FILE,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        return cls(SteeringVectors.load(path))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """What the header says, for people."""
        info = self._hub_mixin_info.model_card_data.to_dict()
        model_name = self.vectors.header.model_name
        if HUB_NAME.fullmatch(model_name):
            info["base_model"] = model_name
        data = ModelCardData(**info)
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{card_text(self.vectors, self.behaviour)}")


def _refuse_another(path: Path, content: str, what: str) -> None:
    """Refuse a file that is there already and is not what would be written.

    Raises:
        VectorFileError: there is one, or something that is no regular file.
    """
    try:
        is_ours = not os.path.lexists(path) or read_whole(path) == content.encode()
    except FileError:
        is_ours = False
    if not is_ours:
        raise VectorFileError(f"{path} is another {what} Name another folder, or move it away")


def card_text(vectors: SteeringVectors, behaviour: str = "") -> str:
    """A model card in Markdown, without its metadata: behaviour, use, strength, cost, data, signal, warnings."""
    header = vectors.header
    parts = [
        "# Steering vectors\n",
        f"{_text(behaviour) or 'What they do was not described.'}\n",
        f"Made with `grains_ref` ({_method(header)}) for the model {_text(_short(header.model_name))}: one "
        f"vector of width {vectors.width} for each of its {vectors.n_layers} decoder blocks, {_place(header)}.\n",
        "## Use\n",
        _use(header.choice, by_file=header.method != "grains"),
        "## Strength and cost\n",
        _strength(header.choice),
        "## Data and settings\n",
        markdown_table(("", ""), _provenance(vectors)),
        "## Signal\n",
        _signal(vectors),
    ]
    warnings = _warnings(vectors)
    if warnings:
        parts += ["## Warnings\n", "".join(f"- {warning}\n" for warning in warnings)]
    return "\n".join(parts)


def _method(header: Header) -> str:
    return "GrAInS, arXiv 2507.18043" if header.method == "grains" else f"{_text(header.method)}, which is not GrAInS"


def _place(header: Header) -> str:
    if (header.site, header.positions) == ("block_output", "all"):
        return "added at every token with the norm restored"
    return f"added at the site {_text(header.site)}, positions {_text(header.positions)}, and nowhere else"


def _use(choice: dict[str, Any], *, by_file: bool) -> str:
    """by_file: the vectors' own site and positions are in the file."""
    setting = f"lam={choice['lam']:g}, layers={choice['layers']}" if choice else "lam=LAM"
    imported, steering = "grains_ref.grains import Steering", f"Steering(model.blocks, vectors.v, {setting})"
    if by_file:
        imported = "grains_ref.methods.from_file import steering_of"
        steering = f"steering_of(model, vectors, {setting})"
    return f"""\
```python
from grains_ref.export.hub import SharedVectors
from {imported}

vectors = SharedVectors.from_pretrained(REPOSITORY).vectors
with {steering}:
    model.generate(prompts)  # model = grains_ref.models.load(...)
```
"""


def _strength(choice: dict[str, Any]) -> str:
    if not choice:
        return "No strength was chosen: try several on data of your own, and watch what other skills lose.\n"
    lines = [f"Strength {choice['lam']:g}.\n"]
    if "dev_accuracy" in choice:
        lines.append(
            f"Accuracy on {_figure(choice.get('dev_pairs'))} dev pairs: {_percent(choice['dev_accuracy'])} steered, "
            f"{_percent(choice.get('dev_accuracy_unsteered'))} unsteered.\n"
        )
    if "task_accuracy" in choice:
        lines.append(
            f"Cost: {_percent(choice['task_accuracy'])} of {_figure(choice.get('tasks'))} other tasks right, "
            f"{_percent(choice.get('task_accuracy_unsteered'))} unsteered; {_figure(choice.get('max_loss'))} points "
            "were allowed.\n"
        )
    curve = choice.get("dev_curve")
    if isinstance(curve, list) and all(isinstance(point, list) and len(point) == 2 for point in curve):
        lines.append(markdown_table(("strength", "dev accuracy"), [(_figure(x), _percent(y)) for x, y in curve]))
    return "\n".join(lines)


def _provenance(vectors: SteeringVectors) -> list[tuple[str, str]]:
    wanted = (
        "model fingerprint", "dialect", "examples", "data digest", "tokens digest", "chat template",
        "date in the chats", "hyper-parameters", "versions",
    )  # fmt: skip
    return [(name, words) for name, words in vectors.summary() if name in wanted]


def _signal(vectors: SteeringVectors) -> str:
    """What aggregation found, layer by layer, as far as the header tells."""
    lengths = [row[0] for row in vectors.norms()]
    columns = {
        name: values
        for name, values in vectors.header.diagnostics.items()
        if isinstance(values, list) and len(values) == len(lengths) and all(map(is_finite_number, values))
    }
    rows = []
    for layer, length in enumerate(lengths):
        rows.append((str(layer), f"{length:.3g}", *(f"{values[layer]:.3g}" for values in columns.values())))
    line = vectors.header.signal.get("line")
    signal = f"Signal: {_text(line)}\n\n" if line else ""
    return signal + markdown_table(("layer", "length of v", *columns), rows)


def _warnings(vectors: SteeringVectors) -> list[str]:
    header = vectors.header
    warnings = []
    if not header.choice:
        warnings.append("The strength was not chosen on data.")
    elif "task_accuracy" not in header.choice:
        warnings.append("What the steering costs other skills was not measured.")
    if header.n_examples < FEW_EXAMPLES:
        warnings.append(f"Made of {header.n_examples} examples; the direction may be chance.")
    if header.dialect not in ("paper", "none"):
        warnings.append(f"Made by other rules than the paper's: {_text(header.dialect)}.")
    empty = [str(layer) for layer, row in enumerate(vectors.norms()) if row[0] == 0]
    if empty:
        warnings.append(f"The blocks {', '.join(empty)} have no vector and are not steered.")
    return warnings


def _percent(share: Any) -> str:
    return f"{100 * float(share):.1f} %" if is_finite_number(share) else "?"


def _figure(value: Any) -> str:
    """A number as it stands; what a header may hold in its place, any JSON, is none."""
    return f"{value}" if is_finite_number(value) else "?"


def _short(model_name: str) -> str:
    """A hub id as it is; of a folder only its last part, for the rest is nobody's business."""
    return model_name if HUB_NAME.fullmatch(model_name) else Path(model_name).name


def _text(words: str) -> str:
    """Words as they stand: no Markdown, no tag."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(words))
