"""How much of the steering's effect each target of `grains-ref export` keeps, on the embedded text worlds.

    python benchmarks/export_losses.py                       # prints the table; a minute on one core
    python benchmarks/export_losses.py --write docs/export.md  # and puts it between that page's marks

For each world the paper's vectors are made of its 50 steering pairs; every target's file is written and read again, and
the target's formula runs as hooks on the model, at the last token of the test prompts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from grains_ref.data import content_digest
from grains_ref.demo.planted import as_pairs, model_folder
from grains_ref.export import TARGETS, find_target
from grains_ref.export.measure import measure
from grains_ref.export.target import Asked, directions_of
from grains_ref.files import write_whole
from grains_ref.fitting import steering_vectors
from grains_ref.grains import PRESETS, Encoded, Steering, fit
from grains_ref.models import HuggingFaceModel, load
from grains_ref.report.markdown import markdown_table
from grains_ref.tiny_models.worlds import build_world
from grains_ref.vectors import SteeringVectors

WORLDS = ("simple", "graded")
LAMS = (1.0, 2.5, 6.3)
N_PROMPTS = 50
BEGIN, END = "<!-- losses -->\n", "<!-- end of losses -->\n"


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a page with the marks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = [(world, lam) for world in WORLDS for lam in LAMS]
    losses: dict[tuple[str, str], list[str]] = {}
    for world in WORLDS:
        model = load(model_folder(world, 0))
        vectors, prompts = made(world, model)
        for lam in LAMS:
            for row, loss in of_all_targets(model, vectors, prompts, lam).items():
                losses.setdefault(row, []).append(f"{loss:.2g}" if loss >= 1e-5 else "0")
    head = ["target", "use", *(f"{world}, lam {lam:g}" for world, lam in columns)]
    table = markdown_table(head, [[*row, *cells] for row, cells in losses.items()])
    print(table)
    if options.write:
        before, _, rest = options.write.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        write_whole(options.write, f"{before}{BEGIN}\n{table}\n{END}{after}")


def made(world: str, model: HuggingFaceModel) -> tuple[SteeringVectors, list[Encoded]]:
    """The paper's vectors of the world's steering pairs, and its test prompts."""
    built = build_world(world)  # type: ignore[arg-type]
    pairs = as_pairs(built.split("steer"))
    examples = [model.example(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    hp = PRESETS["paper_llm"]
    vectors = steering_vectors(model, fit(model, examples, hp), hp, content_digest(pairs), examples)
    return vectors, [model.encode(pair.prompt) for pair in as_pairs(built.split("test"))[:N_PROMPTS]]


def of_all_targets(
    model: HuggingFaceModel, vectors: SteeringVectors, prompts: list[Encoded], lam: float
) -> dict[tuple[str, str], float]:
    """Loss by target and use."""
    steering = Steering(model.blocks, vectors.v, lam=lam)
    losses = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "vectors.safetensors"
        vectors.save(source)
        for name in TARGETS:
            target = find_target(name)
            carried = target.carried(directions_of(vectors, lam=lam, layers=range(vectors.n_layers)))
            in_file = target.read(target.write(carried, Asked(vectors=source)), name)
            for loss in measure(model, steering, in_file, target.uses, prompts, lam=lam):
                losses[name, loss.use] = loss.loss
    return losses


if __name__ == "__main__":
    main()
