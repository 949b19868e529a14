"""Which rows make which table or figure of the paper, and the paper's own numbers.

A `TableSpec` is a view on cells; nothing is run here, and what the cells say is in `statistics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from grains_ref.datasets.registry import DATASETS
from grains_ref.demo.planted import Kind
from grains_ref.reproduction.rows import KS

Measure = Literal["right", "rejected", "bleu", "capable", "humaneval", "writing_prompts", "xstory_cloze"]
MEASURES: dict[Measure, str] = {
    "right": "accuracy",
    "rejected": "hallucination rate",
    "bleu": "BLEU accuracy",
    "capable": "capability",
    "humaneval": "HumanEval, pass@1",
    "writing_prompts": "WritingPrompts, stories",
    "xstory_cloze": "XStoryCloze",
}
# Of tasks, not of the prompts of test pairs.
OF_TASKS: tuple[Measure, ...] = ("capable", "humaneval", "writing_prompts", "xstory_cloze")
WORLDS_OF: dict[Kind, tuple[str, str]] = {
    "text": ("simple", "graded"),
    "visual": ("simple-visual", "graded-visual"),
}


@dataclass(frozen=True, eq=False)
class TableSpec:
    """One table: what stands in it, and what stood in the paper's."""

    name: str  # "table 1", "steps", ...: what the command is asked for
    title: str
    kind: Kind
    measures: tuple[Measure, ...]
    rows: dict[str, str]  # what the page calls it -> the row of `rows`
    paper_columns: tuple[str, ...] = ()
    paper: dict[str, tuple[float, ...]] = field(default_factory=dict)  # under the page's names
    reference: str = "GrAInS"  # the row that the others are compared with in pairs


TEXT_METHODS = {
    "Base model": "unsteered",
    "LoRA": "LoRA, the paper's setting",
    "LoRA, rate chosen on dev": "LoRA, tuned",
    "ICV": "ICV",
    "ITI": "ITI",
    "NL-ITI": "NL-ITI",
    "CAA": "CAA",
    "CAA, read where the answers differ": "CAA, read at the difference",
    "RepE": "RepE",
    "Random tokens": "random tokens",
    "GrAInS": "GrAInS",
    "GrAInS, candidate": "neutral + mean",  # the one that dev put to the test, docs/reproduction_rules.md
    "Planted tokens, PCA": "planted tokens, PCA",
    "Planted tokens, mean": "planted tokens, mean",
}
VISUAL_METHODS = {
    "Base model": "unsteered",
    "LoRA": "LoRA, the paper's setting",
    "LoRA, rate chosen on dev": "LoRA, tuned",
    "VTI": "VTI",
    "ICT": "ICT",
    "CAA": "CAA",
    "CAA, read where the answers differ": "CAA, read at the difference",
    "ICV": "ICV",
    "Random tokens": "random tokens",
    "GrAInS": "GrAInS",
    "GrAInS, candidate": "neutral + mean",  # the one that dev put to the test, docs/reproduction_rules.md
    "Planted tokens, PCA": "planted tokens, PCA",
    "Planted tokens, mean": "planted tokens, mean",
}
VLMS = ("LLaVA-1.6-7B", "Qwen2.5-VL-7B", "Gemma-3-12B-IT")
LLM_COLUMNS = tuple(f"{m} {d}" for m in ("Llama", "Qwen") for d in ("TruthfulQA", "Toxigen", "FaithEval"))

TABLES = (
    TableSpec(
        "table 1",
        "LLM benchmarks: accuracy",
        "text",
        ("right",),
        TEXT_METHODS,
        LLM_COLUMNS,
        {
            "Base model": (34.15, 51.19, 68.00, 51.41, 55.04, 59.89),
            "LoRA": (40.67, 58.78, 69.93, 56.87, 59.98, 64.96),
            "ICV": (39.67, 59.07, 68.65, 53.06, 59.72, 63.64),
            "NL-ITI": (37.04, 56.88, 69.46, 52.95, 60.54, 60.38),
            "CAA": (44.62, 58.89, 69.32, 56.74, 60.01, 62.21),
            "GrAInS": (47.37, 60.98, 70.94, 59.85, 62.12, 64.77),
        },
    ),
    TableSpec(
        "table 2",
        "Hallucination rate (lower is better)",
        "visual",
        ("rejected",),
        VISUAL_METHODS,
        VLMS,
        {
            "Base model": (62.4, 52.3, 46.8),
            "LoRA": (56.5, 46.1, 46.4),
            "VTI": (58.7, 49.9, 46.0),
            "ICT": (59.2, 51.5, 45.7),
            "CAA": (61.0, 53.7, 49.3),
            "GrAInS": (51.4, 47.3, 44.2),
        },
    ),
    TableSpec(
        "table 3",
        "Preference win rate, chosen over rejected",
        "visual",
        ("right",),
        VISUAL_METHODS,
        VLMS,
        {
            "Base model": (40.24, 53.21, 49.32),
            "LoRA": (45.72, 56.83, 52.37),
            "VTI": (42.46, 54.42, 51.45),
            "ICT": (43.18, 54.45, 52.13),
            "CAA": (43.71, 53.60, 50.63),
            "GrAInS": (48.35, 58.90, 53.51),
        },
    ),
    TableSpec(
        "table 4",
        "What LLM steering costs: generation and capability",
        "text",
        ("bleu", "capable"),
        TEXT_METHODS,
        ("Llama BLEU", "Qwen BLEU", "Llama MMLU", "Qwen MMLU"),
        {
            "Base model": (38.19, 47.65, 69.27, 74.58),
            "LoRA": (46.81, 51.96, 67.69, 72.17),
            "ICV": (46.60, 49.09, 69.18, 74.41),
            "NL-ITI": (45.71, 48.62, 65.74, 70.33),
            "CAA": (46.52, 49.63, 51.49, 62.91),
            "GrAInS": (47.91, 54.09, 69.15, 74.29),
        },
    ),
    TableSpec(
        "table 5",
        "What VLM steering costs: generation and capability",
        "visual",
        ("bleu", "capable"),
        VISUAL_METHODS,
        ("LLaVA BLEU", "Qwen-VL BLEU", "LLaVA MMMU", "Qwen-VL MMMU"),
        {
            "Base model": (42.38, 49.17, 35.81, 58.64),
            "LoRA": (47.27, 51.74, 34.55, 57.36),
            "VTI": (45.92, 51.87, 35.63, 58.41),
            "ICT": (47.65, 52.01, 34.11, 53.29),
            "CAA": (42.13, 50.14, 33.29, 41.51),
            "GrAInS": (46.79, 53.02, 34.92, 58.13),
        },
    ),
    TableSpec(
        "table 6",
        "Attribution methods: accuracy",
        "text",
        ("right",),
        {
            "Base model": "unsteered",
            "Random selection": "random tokens",
            "GrAInS, vanilla gradient": "gradient",
            "GrAInS, SmoothGrad": "SmoothGrad",
            "GrAInS, Integrated Gradients": "GrAInS",
            "GrAInS, Guided IG": "Guided IG",
            "GrAInS, Guided IG, wide band": "Guided IG, wide band",
            "GrAInS, SHAP": "SHAP",
            "GrAInS, KernelSHAP": "KernelSHAP",
            "GrAInS, occlusion": "occlusion",
            "GrAInS, occlusion of neighbours": "occlusion in pairs",
            "GrAInS, occlusion of all pairs": "occlusion of all pairs",
            "GrAInS, tokens masked one at a time": "masked one at a time",
        },
        ("Llama TruthfulQA", "Toxigen", "FaithEval"),
        {
            "Base model": (34.15, 48.10, 68.00),
            "Random selection": (38.47, 52.66, 67.29),
            "GrAInS, vanilla gradient": (41.68, 55.28, 69.12),
            "GrAInS, SmoothGrad": (45.06, 58.32, 71.13),
            "GrAInS, Integrated Gradients": (47.37, 60.94, 70.94),
        },
    ),
    TableSpec(
        "table 7",
        "Modalities: preference win rate",
        "visual",
        ("right",),
        {
            "Base model": "unsteered",
            "GrAInS, vision only": "image tokens only",
            "GrAInS, text only": "text tokens only",
            "GrAInS": "GrAInS",
        },
        VLMS[:2],
        {
            "Base model": (40.24, 53.21),
            "GrAInS, vision only": (46.47, 56.29),
            "GrAInS, text only": (44.30, 56.42),
            "GrAInS": (48.35, 58.90),
        },
    ),
    TableSpec(
        "table 8",
        "Objectives: preference win rate",
        "visual",
        ("right",),
        {
            "Base model": "unsteered",
            "GrAInS, likelihood": "likelihood objective",
            "GrAInS, preference-based loss": "GrAInS",
        },
        VLMS[:2],
        {
            "Base model": (40.24, 53.21),
            "GrAInS, likelihood": (47.32, 57.19),
            "GrAInS, preference-based loss": (48.35, 58.90),
        },
    ),
)


WITH_ABILITIES = ("table 4", "table 5")  # what steering costs
ABILITY_ROWS = frozenset(row for spec in TABLES if spec.name in WITH_ABILITIES for row in spec.rows.values())


def with_abilities(spec: TableSpec, abilities: Sequence[str]) -> TableSpec:
    """Tables 4 and 5 with further tests of ability; any other table as it is."""
    if spec.name not in WITH_ABILITIES:
        return spec
    further = tuple(measure for measure in MEASURES if measure in abilities)
    return replace(spec, measures=(*spec.measures, *further))


def needed(spec: TableSpec, worlds: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int, str]]:
    """The cells of a table; the unsteered model is always needed, as what gains are measured from."""
    rows = dict.fromkeys(["unsteered", spec.reference, *spec.rows.values()])
    return [(world, seed, row) for world in worlds for seed in seeds for row in rows]


def kind_of(world: str) -> Kind:
    """Whether a world, or a column of the full rung, has pictures."""
    dataset = DATASETS.get(world.split(", ")[-1])
    has_pictures = dataset.pictures if dataset else world in WORLDS_OF["visual"]
    return "visual" if has_pictures else "text"


COST_ROWS: dict[Kind, list[str]] = {
    "text": ["GrAInS", "CAA", "ICV", "ITI", "NL-ITI", "RepE", "LoRA, the paper's setting", "LoRA, tuned"],
    "visual": ["GrAInS", "CAA", "ICV", "VTI", "ICT", "LoRA, the paper's setting", "LoRA, tuned"],
}


def figure_rows(kind: Kind) -> dict[int, str]:
    """Figure 6: k -> row."""
    paper_k = {"text": 3, "visual": 20}[kind]
    return {k: "GrAInS" if k == paper_k else f"k = {k}" for k in sorted({*KS[kind], paper_k})}
