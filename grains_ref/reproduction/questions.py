"""What the paper leaves open, as tables: settings, controls, edit gradient, fair fight, neighbours; the demos."""

from __future__ import annotations

from grains_ref.demo import text, vision
from grains_ref.demo.planted import Kind
from grains_ref.reproduction import decoding_rows
from grains_ref.reproduction.edit_questions import ROWS, START
from grains_ref.reproduction.fair_fight import rows_of_the_fight
from grains_ref.reproduction.paper import TableSpec
from grains_ref.reproduction.rows import CANDIDATES, EDITS, N_EXAMPLES
from grains_ref.reproduction.systems import table_rows

DIRECTIONS = {
    "Unsteered": "unsteered",
    "GrAInS": "GrAInS",
    "GrAInS, reversed": "GrAInS, reversed",
    "GrAInS, without its planted part": "GrAInS, without its planted part",
    "Gaussian vectors": "Gaussian vectors",
    "Mean": "mean",
    "Mean, reversed": "mean, reversed",
    "Mean, without its planted part": "mean, without its planted part",
    "Planted tokens, mean": "planted tokens, mean",
    "Planted tokens, mean, reversed": "planted tokens, mean, reversed",
}

EDIT_GRADIENTS = {
    "Unsteered": "unsteered",
    "GrAInS, the paper's setting": "GrAInS",
    **{name.removeprefix("edit gradient, ").capitalize(): name for name in EDITS},
    "Gaussian vectors": "Gaussian vectors",
    "ICV": "ICV",
    "LoRA, rate chosen on dev": "LoRA, tuned",
}


def _short(name: str) -> str:
    """A row's name where the page says that all are edit gradients."""
    short = name.removeprefix("edit gradient, ")
    return short[0].upper() + short[1:]


EDIT_QUESTIONS = {
    "Unsteered": "unsteered",
    "Attention output, all": START,
    **{_short(name): name for name in ROWS},
}

RESCUES = {
    "Unsteered": "unsteered",
    "GrAInS, the paper's setting": "GrAInS",
    "Mean": "mean",
    "Less random tokens": "less random tokens",
    "Less random tokens, mean": "less random tokens, mean",
    "Agreeing layers": "agreeing layers",
    "Content, mean": "protect + mean",
    "Mask: neutral word": "mask: neutral word",
    "Mask: mean embedding": "mask: mean embedding",
    "Path baseline: neutral word": "path baseline: neutral word",
}


def _sites(kind: Kind) -> dict[str, str]:
    """The fair fight's rows, beside what they are compared with."""
    fight = {name[0].upper() + name[1:]: name for name in rows_of_the_fight(is_visual=kind == "visual")}
    return {"Unsteered": "unsteered", "GrAInS, the paper's setting": "GrAInS"} | fight


QUESTIONS = (  # the tables of the demos, and what the paper leaves open
    TableSpec(
        "demo",
        "The table of `grains-ref demo`",
        "text",
        ("right", "rejected", "capable"),
        {name: row for row, name in text.ROWS.items()},
    ),
    TableSpec(
        "demo, visual",
        "The table of `grains-ref demo --vision`",
        "visual",
        ("right", "rejected", "capable"),
        {name: row for row, name in vision.ROWS.items()},
    ),
    TableSpec(
        "objective",
        "Objectives in the text worlds",
        "text",
        ("right",),
        {"Unsteered": "unsteered", "Likelihood": "likelihood objective", "Preference": "GrAInS"},
    ),
    TableSpec(
        "attribution",
        "Attribution methods in the visual worlds",
        "visual",
        ("right",),
        {
            "Unsteered": "unsteered",
            "Random": "random tokens",
            "Gradient": "gradient",
            "SmoothGrad": "SmoothGrad",
            "Integrated Gradients": "GrAInS",
            "Guided IG": "Guided IG",
            "Guided IG, wide band": "Guided IG, wide band",
            "SHAP": "SHAP",
            "KernelSHAP": "KernelSHAP",
            "Occlusion": "occlusion",
            "Occlusion of neighbours": "occlusion in pairs",
            "Occlusion of all pairs": "occlusion of all pairs",
            "Tokens masked one at a time": "masked one at a time",
        },
    ),
    TableSpec(
        "examples",
        "How many examples?",
        "text",
        ("right",),
        {f"{n}": "GrAInS" if n == 50 else f"{n} examples" for n in sorted((*N_EXAMPLES, 50))}
        | {f"{n}, mean": "mean" if n == 50 else f"{n} examples, mean" for n in (5, 20, 50, 200)},
    ),
    TableSpec(
        "layers",
        "Which layers?",
        "text",
        ("right",),
        {"All": "GrAInS"} | {f"Layer {i}": f"layer {i}" for i in range(4)} | {"Greedy set": "greedy set of layers"},
    ),
    TableSpec(
        "layers, visual",
        "Which layers? (visual worlds)",
        "visual",
        ("right",),
        {"All": "GrAInS"} | {f"Layer {i}": f"layer {i}" for i in range(3)},
    ),
    TableSpec(
        "steps",
        "How many steps, and which quadrature?",
        "text",
        ("right",),
        {
            "1": "m = 1",
            "2": "m = 2",
            "5": "GrAInS",
            "10": "m = 10",
            "20": "m = 20",
            "50": "m = 50",
            "5, midpoint": "m = 5, midpoint",
            "5, Gauss-Legendre": "m = 5, Gauss-Legendre",
            "5, equal in log(alpha)": "m = 5, log-graded",
            "10, equal in log(alpha)": "m = 10, log-graded",
        },
    ),
    TableSpec(
        "eligible",
        "Which tokens may be selected?",
        "text",
        ("right",),
        {
            "All": "GrAInS",
            "No special tokens": "no special tokens",
            "Not the last token": "not the last token",
            "Content, not the last token": "protect",
        },
    ),
    TableSpec(
        "aggregation",
        "How are shifts aggregated?",
        "text",
        ("right",),
        {
            "Centred PCA": "GrAInS",
            "2 components": "2 components",
            "3 components": "3 components",
            "4 components": "4 components",
            "Uncentred PCA": "uncentred PCA",
            "Mean": "mean",
            "Weighted mean": "weighted mean",
        },
    ),
    TableSpec(
        "aggregation, visual",
        "How are shifts aggregated? (visual worlds)",
        "visual",
        ("right",),
        {"Centred PCA": "GrAInS", "Uncentred PCA": "uncentred PCA", "Mean": "mean"},
    ),
    TableSpec("direction", "Does the direction matter?", "text", ("right",), DIRECTIONS),
    TableSpec("direction, visual", "Does the direction matter? (visual worlds)", "visual", ("right",), DIRECTIONS),
    TableSpec(
        "baselines",
        "Which baseline, for the path and for the mask?",
        "text",
        ("right",),
        {
            "Zero, zero": "GrAInS",
            "Path: mean embedding": "path baseline: mean embedding",
            "Path: neutral word": "path baseline: neutral word",
            "Mask: mean embedding": "mask: mean embedding",
            "Mask: neutral word": "mask: neutral word",
            "Both: neutral word": "path and mask: neutral word",
        },
    ),
    TableSpec(
        "baselines, visual",
        "Which baseline, for the path and for the mask? (visual worlds)",
        "visual",
        ("right",),
        {
            "Zero, zero": "GrAInS",
            "Path: mean embedding": "path baseline: mean embedding",
            "Path: neutral word": "path baseline: neutral word",
            "Mask: mean embedding": "mask: mean embedding",
            "Mask: neutral word": "mask: neutral word",
        },
    ),
    TableSpec(
        "robust",
        "Candidates for a recommended setting",
        "text",
        ("right", "capable"),
        {"Unsteered": "unsteered", "GrAInS, the paper's setting": "GrAInS"} | {name: name for name in CANDIDATES},
    ),
    TableSpec(
        "robust, visual",
        "Candidates for a recommended setting (visual worlds)",
        "visual",
        ("right", "capable"),
        {"Unsteered": "unsteered", "GrAInS, the paper's setting": "GrAInS"} | {name: name for name in CANDIDATES},
    ),
    TableSpec(
        "edit gradient",
        "The gradient of the edit itself",
        "text",
        ("right", "capable"),
        EDIT_GRADIENTS | {"NL-ITI": "NL-ITI"},
    ),
    TableSpec(
        "edit gradient, visual",
        "The gradient of the edit itself (visual worlds)",
        "visual",
        ("right", "capable"),
        EDIT_GRADIENTS | {"ICT": "ICT"},
    ),
    TableSpec("sites", "A fair fight over where to steer", "text", ("right", "capable"), _sites("text")),
    TableSpec(
        "sites, visual",
        "A fair fight over where to steer (visual worlds)",
        "visual",
        ("right", "capable"),
        _sites("visual"),
    ),
    TableSpec("rescue", "What might rescue the paper's idea", "text", ("right", "capable"), RESCUES),
    TableSpec(
        "rescue, visual",
        "What might rescue the paper's idea (visual worlds)",
        "visual",
        ("right", "capable"),
        RESCUES,
    ),
    TableSpec(
        "edit questions",
        "Questions about the edit gradient",
        "text",
        ("right", "capable"),
        EDIT_QUESTIONS,
        reference=START,
    ),
    TableSpec(
        "edit questions, visual",
        "Questions about the edit gradient (visual worlds)",
        "visual",
        ("right", "capable"),
        EDIT_QUESTIONS,
        reference=START,
    ),
    TableSpec(
        "decoding, visual",
        "Decoding methods, alone and with steering (visual worlds)",
        "visual",
        ("right", "rejected", "capable"),
        {"Unsteered": "unsteered", "GrAInS, the paper's setting": "GrAInS"}
        | {name: name for name in decoding_rows.ROWS},
    ),
    TableSpec("systems", "The systems named as neighbours", "text", ("right", "capable"), table_rows(is_visual=False)),
    TableSpec(
        "systems, visual",
        "The systems named as neighbours (visual worlds)",
        "visual",
        ("right", "rejected", "capable"),
        table_rows(is_visual=True),
    ),
)
