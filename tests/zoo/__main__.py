"""Try every causal language model and image-text type of transformers: `python tests/zoo` writes docs/models.md.

Of each type a tiny random model is built, the proof is run, and what it lets in is checked in what it is for. Takes
a minute or two of one core. Exits with 1 if a model was let in that is wrong somewhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers

from grains_ref.models import HuggingFaceModel, UnsupportedModelError
from grains_ref.models.vision_families import VISION_FAMILIES, family_class
from zoo import deeper, pictures, recipes
from zoo.seeing import SEEING

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
CAPTUM_SAMPLE = (
    "gpt2", "gpt_neox", "phi3", "mistral", "gpt_oss", "gemma4_text", "llama4_text", "qwen3_5_text", "falcon_h1",
    "bloom",
)  # fmt: skip


@dataclass
class Outcome:
    """What became of one type: built or not, let in or not, and how far two ways to the same thing were apart."""

    kind: str
    unbuilt: str = ""
    refused: str = ""
    distances: dict[str, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # checks that raised
    cannot: dict[str, str] = field(default_factory=dict)  # checks of what the model is found not to do
    boxes: str = ""

    @property
    def is_let_in(self) -> bool:
        """Whether the proof passed."""
        return not self.unbuilt and not self.refused

    @property
    def wrong(self) -> list[str]:
        """The deeper checks that failed."""
        return [*self.broken, *(name for name, apart in self.distances.items() if not apart <= deeper.ALLOWED)]


def outcome_of(kind: str) -> Outcome:
    """Build, prove, check."""
    outcome = Outcome(kind)
    if kind in pictures.TYPES:
        outcome.unbuilt = "it sees: tried with the others that do"
        return outcome
    try:
        family_class(transformers.AutoConfig.for_model(kind))
    except UnsupportedModelError as error:
        outcome.refused = str(error)
        return outcome
    except Exception:  # some types have no default configuration; the recipe may
        pass
    try:
        hf = recipes.tiny_network(kind)
    except Exception as error:
        outcome.unbuilt = f"{type(error).__name__}: {error}"
        return outcome
    try:
        model = HuggingFaceModel(hf, recipes.shared_tokenizer(), name=kind)
    except UnsupportedModelError as error:
        outcome.refused = str(error)
        return outcome
    checks = dict(deeper.CHECKS)
    if kind in CAPTUM_SAMPLE:
        checks["Captum"] = deeper.attribution_is_captums
    for name, check in checks.items():
        try:
            outcome.distances[name] = check(model)
        except Exception as error:
            outcome.broken[name] = f"{type(error).__name__}: {error}"
    return outcome


def seeing_outcome(name: str) -> Outcome:
    """The same of a model that sees."""
    outcome = Outcome(name)
    try:
        model = SEEING[name]() if name in SEEING else pictures.tiny(name)
    except UnsupportedModelError as error:
        outcome.refused = str(error)
        return outcome
    except Exception as error:
        outcome.unbuilt = f"{type(error).__name__}: {error}"
        return outcome
    outcome.boxes = "exact" if name in SEEING else "regular" if model.family.patches(deeper.SIZE) else "none"
    for check_name, check in deeper.SEEING_CHECKS.items():
        try:
            outcome.distances[check_name] = check(model)
        except UnsupportedModelError:
            outcome.cannot[check_name] = "one picture"
        except Exception as error:
            outcome.broken[check_name] = f"{type(error).__name__}: {error}"
    return outcome


def page_of(outcomes: Sequence[Outcome], seeing: Sequence[Outcome]) -> str:
    """docs/models.md."""
    let_in = [outcome for outcome in outcomes if outcome.is_let_in]
    right = [outcome for outcome in let_in if not outcome.wrong]
    wrong = [outcome for outcome in let_in if outcome.wrong]
    refused = [outcome for outcome in outcomes if outcome.refused]
    unbuilt = [outcome for outcome in outcomes if outcome.unbuilt]
    columns = [*deeper.CHECKS, "Captum"]
    lines = [
        INTRODUCTION.format(version=transformers.__version__, day=datetime.date.today(), types=len(outcomes)),
        "| | types |", "|---|---|",
        f"| let in, and right in every deeper check | {len(right)} |",
        f"| let in, and wrong somewhere | {len(wrong)} |",
        f"| refused, with the reason | {len(refused)} |",
        f"| not tried, see the end | {len(unbuilt)} |",
        "", "## Let in", "", DISTANCES,
        "| model_type | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|",
    ]  # fmt: skip
    lines += [_row(outcome, columns) for outcome in let_in]
    lines += _seeing_lines(seeing)
    lines += ["", BROUGHT.rstrip()]
    lines += ["", "## Refused", "", "| model_type | reason |", "|---|---|"]
    lines += [f"| `{outcome.kind}` | {_cell(outcome.refused)} |" for outcome in refused]
    lines += ["", "## Not tried", "", "| model_type | why no tiny one was built |", "|---|---|"]
    lines += [f"| `{outcome.kind}` | {_cell(outcome.unbuilt)} |" for outcome in unbuilt]
    return "\n".join(lines) + "\n"


def _seeing_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """The part on models that see: those let in by their figures, the others by their reasons."""
    columns = list(deeper.SEEING_CHECKS)
    let_in = [outcome for outcome in outcomes if outcome.is_let_in]
    types = {outcome.kind.partition(",")[0] for outcome in let_in if not outcome.wrong}
    wrong = {outcome.kind.partition(",")[0] for outcome in let_in if outcome.wrong}
    refused = [outcome for outcome in outcomes if outcome.refused]
    unbuilt = [outcome for outcome in outcomes if outcome.unbuilt]
    lines = ["", "## Models that see", "", SEEING_WORDS, "| | image-text types |", "|---|---|"]
    lines += [f"| let in, and right in every deeper check | {len(types - wrong)} |"]
    lines += [f"| let in, and wrong somewhere | {len(wrong)} |"]
    lines += [f"| refused, with the reason | {len(refused)} |", f"| not tried | {len(unbuilt)} |", ""]
    lines += ["| model_type | " + " | ".join(columns) + " | boxes |", "|---" * (len(columns) + 2) + "|"]
    lines += [f"{_row(outcome, columns)} {outcome.boxes} |" for outcome in let_in]
    lines += ["", "### Image-text types that are refused", "", "| model_type | reason |", "|---|---|"]
    lines += [f"| `{outcome.kind}` | {_cell(outcome.refused)} |" for outcome in refused]
    lines += ["", "### Image-text types not tried", "", "| model_type | why no tiny one was built |", "|---|---|"]
    return lines + [f"| `{outcome.kind}` | {_cell(outcome.unbuilt)} |" for outcome in unbuilt]


def _row(outcome: Outcome, columns: Sequence[str]) -> str:
    """A line of a table of distances; what a check raised in its place."""
    cells = [f"`{outcome.kind}`"]
    for name in columns:
        apart = outcome.distances.get(name)
        if apart is None:
            cells.append(_cell(outcome.broken.get(name, outcome.cannot.get(name, ""))))
        else:
            cells.append("0" if apart == 0 else f"{apart:.0e}")
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """On one line, without what ends a cell, and not too long."""
    words = " ".join(text.replace("|", "/").split())
    return words if len(words) <= 240 else words[:237] + "..."


INTRODUCTION = """# Which models work

There is no list of models. What transformers loads as a decoder is tried whenever it is loaded (`grains-ref check
MODEL` prints the trial), and let in if it behaves as it is to be used. This page says what comes of that: {types} types
of causal language models of transformers {version}, a tiny random model of each (4 blocks, width 32), float32, written
by `python tests/zoo` on {day}. A sample of thirty is part of `pytest -m cpu`.
The image-text types are in a part of their own.

A released model of a type can still be refused: for its dtype, its tokenizer, or a setting that its tiny one does not
have. What begins to act only behind the dozen tokens of the trial at load (windows, chunks) acts in the tiny ones here.

Share. Of 15,736 text-generation models on the hub with 500 downloads or more (a count of 28 July 2026), 39.7 % were of
the six types that were once listed by name. The types below are some 80 % of them; most of the others are
encoder-decoders.
"""
BROUGHT = """## What people bring

| what | how it is loaded | what was run |
|---|---|---|
| a LoRA adapter (a folder of peft) | merged into the base that it names, or that `--base` (`base=`) gives, rounded once to the weights' type. Every tensor of the adapter must find its place, and every place its tensor; a base of the same shape that was trained otherwise cannot be told, and its fingerprint stands in the header | tiny Llama, adapters on adapters and on GGUF; the logits are peft's |
| GGUF, a file or its folder | by transformers' own loader, as float32 unless a type is asked for (`--dtype`). Refused where that loader would pass over something: stretched rotary angles, as Llama 3.1 and newer have them, and tensors without a place. Parts have to be joined first | tiny Llama in F32, F16, Q8_0 and Q4_1 |
| quantised folders | by transformers, if the proof passes; it then also adds up gradients along a path, because some kernels lose them without an error. `check` and the header name the method | see below |
| shards, `device_map`, offloading | as transformers does it | tiny Llama and Gemma 3 |
| tensor parallelism | `torchrun`, `--device-map tensor_parallel`: transformers' own plan; all processes compute the same. FSDP is refused, and an adapter has to be merged first | tiny Llama, two processes on a CPU (gloo); no GPU |
| weights in a pickle | refused; a folder that lacks some of its weights, too | |

Quantised tiny Llamas, float32, on a CPU, 28 November 2026; on a GPU none was run:

| method | package | outcome |
|---|---|---|
| bitsandbytes, 8 bits | 0.50.2 | let in; vectors at a cosine of .9997 to those of the plain model |
| bitsandbytes, 4 bits | 0.50.2 | refused: its kernel for CPUs lets no gradient through |
| torchao, 8 bits, weights only | 0.18.0 | let in; cosine .9999 |
| torchao, 8 bits, activations too | 0.18.0 | refused: rounding lets no gradient through |
| quanto, 8 bits | 0.2.7 | let in; cosine .9999 |
| eight-bit floats, AWQ, GPTQ, HQQ, MXFP4, compressed-tensors | | not run |

In the chats of reasoning models (DeepSeek-R1, QwQ, Qwen 3) every answer, scored or generated, stands behind an empty
reasoning block, as the templates write it where thinking is off: a preference is about answers. An answer that brings
thoughts of its own is refused there; give such prompts as plain text.
"""  # noqa: E501
DISTANCES = """How far two ways to the same thing are apart, relatively: 1e-3 is allowed, what is wrong is 0.01 or more.
*ids = embeddings*: logits of a prompt longer than every window. *scores behind a cache*: padded batches, whole and in
slices, against one pass for each row. *steered generation*: 0 if cached, padded generation says what a recomputation
of every token says. *fit*: lengths of the vectors against 1. *Captum*: attributions of a sample of ten against
Captum's.
"""


SEEING_WORDS = """Thirteen types have a class in `vision_families.py`, with exact boxes. All others are asked
(`any_vision.py`): nothing is written for them but the sizes of the tiny model. Only PIL image processors are used.
*scores behind a cache*: two pictures and a text in one batch. *steered generation*: transformers' own from pixels
against a recomputation from embeddings. *attribution, fit*: scores of pictures that are not all zero, lengths of fitted
vectors against 1. *two pictures*: in one prompt, scored, exchanged and told from pixels. *boxes*: whether an overlay
can be drawn. A reason below may be one of the tiny model alone; a released one says its own when it is loaded.
"""


def _kept(path: Path | None) -> dict[str, Outcome]:
    """The outcomes of an earlier run, by place and type."""
    if path is None or not path.exists():
        return {}
    kept = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        place = fields.pop("place")
        kept[f"{place} {fields['kind']}"] = Outcome(**fields)
    return kept


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="only these types; prints and writes no page")
    parser.add_argument("--kept", type=Path, help="JSON lines of what has been tried; the rest is tried and added")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    kept = _kept(arguments.kept)
    outcomes, seeing = [], []
    others = [kind for kind in pictures.TYPES if kind not in VISION_FAMILIES]
    kinds = arguments.kinds
    for place, kind in [("seeing", kind) for kind in [*SEEING, *others]] + [("text", kind) for kind in recipes.TYPES]:
        if kinds and kind not in kinds:
            continue
        outcome = kept.get(f"{place} {kind}")
        if outcome is None:
            outcome = seeing_outcome(kind) if place == "seeing" else outcome_of(kind)
            if arguments.kept:
                with arguments.kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"place": place, **asdict(outcome)}) + "\n")
        (seeing if place == "seeing" else outcomes).append(outcome)
        said = outcome.unbuilt or outcome.refused or f"let in {outcome.wrong or ''}"
        print(f"{kind}: {_cell(said)}", flush=True)
    if not kinds:
        PAGE.write_text(page_of(outcomes, seeing), encoding="utf-8")
    return int(any(outcome.wrong for outcome in [*outcomes, *seeing] if outcome.is_let_in))


if __name__ == "__main__":
    sys.exit(main())
