"""Figure 2 of the paper, drawn anew: `python docs/_site/figure_method.py` writes it for light and for dark pages."""

from __future__ import annotations

from html import escape
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "img"
PALETTES = {
    "light": {"ink": "#1f2933", "soft": "#64707d", "line": "#9aa5b1", "box": "#f4f6f8", "edge": "#c5ced6"}
    | {
        "pos": "#15803d",
        "neg": "#b91c1c",
        "pos_box": "#dcfce7",
        "neg_box": "#fee2e2",
        "v": "#0f766e",
        "mask": "#d5dbe1",
    },
    "dark": {"ink": "#e6edf3", "soft": "#9fb0c0", "line": "#6b7c8c", "box": "#252b33", "edge": "#46525e"}
    | {
        "pos": "#4ade80",
        "neg": "#f87171",
        "pos_box": "#14412a",
        "neg_box": "#4c1f24",
        "v": "#2dd4bf",
        "mask": "#3b4754",
    },
}
WIDTH, HEIGHT = 1040, 372
WORDS = (
    ("famously", -2),
    ("documented", 2),
    ("what", 0),
    ("is", 0),
    ("the", 0),
    ("feast", 1),
    ("of", 0),
    ("Harness", -1),
)


class Drawing:
    """Shapes and words, collected as SVG."""

    def __init__(self, palette: dict[str, str]) -> None:
        self.palette = palette
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, *, colour: str = "ink", size: int = 13, **style: str) -> None:
        """Words at a place; `anchor`, `weight` and `slope` as in SVG."""
        anchor, weight = style.get("anchor", "start"), style.get("weight", "400")
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{self.palette[colour]}" text-anchor="{anchor}" '
            f'font-weight="{weight}" font-style="{style.get("slope", "normal")}">{escape(words)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, *, fill: str = "box", edge: str = "edge") -> None:
        """A rectangle with round corners."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{self.palette[fill]}" '
            f'stroke="{self.palette[edge]}"/>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float, *, colour: str = "line", width: float = 1.5) -> None:
        """A line with a head."""
        self.parts.append(
            f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="{self.palette[colour]}" '
            f'stroke-width="{width}" marker-end="url(#{colour})"/>'
        )

    def svg(self) -> str:
        """The file."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{self.palette[name]}"/></marker>'
            for name in ("line", "pos", "neg", "v")
        )
        inside = f"<title>{TITLE}</title><defs>{heads}</defs>" + "".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'font-family="system-ui, sans-serif">{inside}</svg>\n'
        )


TITLE = (
    "Pairs of answers, scores of tokens, masked prompts, shifts of the hidden state, one direction per layer, steering"
)


def words(drawing: Drawing, x: float, y: float, masked: int | None = None) -> None:
    """The prompt's words as chips, coloured by score; those of one sign may be masked."""
    for i, (word, score) in enumerate(WORDS):
        row, column = divmod(i, 2)
        sign = "pos" if score > 0 else "neg"
        left, top = x + 100 * column, y + 25 * row
        hidden = masked is not None and score * masked > 0
        drawing.box(
            left,
            top,
            95,
            20,
            fill="mask" if hidden else f"{sign}_box" if score else "box",
            edge=sign if score else "edge",
        )
        if not hidden:
            drawing.text(left + 47, top + 14, word, size=12, anchor="middle", weight="600" if score else "400")


def headed(drawing: Drawing, x: float, number: str, title: str, lines: tuple[str, ...]) -> None:
    """A column's heading, and what it says below its picture."""
    drawing.text(x, 24, title, size=15, weight="600")
    drawing.text(x, 42, number, colour="soft", size=12)
    for i, line in enumerate(lines):
        drawing.text(x, 318 + 17 * i, line, colour="soft", size=12)


def draw(palette: dict[str, str]) -> str:
    """The whole figure."""
    drawing = Drawing(palette)
    headed(
        drawing,
        12,
        "equations (1), (2)",
        "Score the tokens",
        ("by how many nats does each", "push toward either answer?"),
    )
    words(drawing, 12, 62)
    drawing.text(12, 190, "chosen: dance", colour="pos", weight="600")
    drawing.text(12, 209, "rejected: vigil", colour="neg", weight="600")
    drawing.text(12, 240, "f = log P(chosen)", size=13, slope="italic")
    drawing.text(24, 259, "- log P(rejected)", size=13, slope="italic")

    headed(
        drawing,
        256,
        "equations (3), (4)",
        "Mask the strongest",
        ("how does the hidden state at", "the prompt's last token move?"),
    )
    drawing.text(256, 72, "without what helps", colour="pos", size=12, weight="600")
    words(drawing, 256, 80, masked=1)
    drawing.text(256, 202, "without what misleads", colour="neg", size=12, weight="600")
    words(drawing, 256, 208, masked=-1)
    drawing.arrow(216, 130, 248, 130)

    headed(
        drawing,
        500,
        "equations (5), (6)",
        "Find the direction",
        ("one for each layer, over", "all pairs: v = v_pos - v_neg"),
    )
    for tip, (x, y) in enumerate(((40, -30), (52, -22), (46, -40), (36, -44))):
        drawing.arrow(520, 132, 520 + 1.7 * x, 132 + 1.4 * y, colour="pos", width=1.1 + 0.1 * tip)
    drawing.text(612, 92, "v_pos", colour="pos", weight="600")
    for tip, (x, y) in enumerate(((50, 26), (42, 34), (56, 16), (38, 24))):
        drawing.arrow(520, 212, 520 + 1.7 * x, 212 + 1.4 * y, colour="neg", width=1.1 + 0.1 * tip)
    drawing.text(616, 262, "v_neg", colour="neg", weight="600")
    drawing.arrow(460, 130, 496, 130)
    drawing.arrow(460, 250, 496, 232)

    headed(drawing, 740, "equations (7), (8)", "Steer", ("added to the output of every", "block, the length restored"))
    for i in range(4):
        top = 70 + 58 * (3 - i)
        drawing.box(790, top, 120, 34)
        drawing.text(850, top + 21, f"block {i}", size=13, anchor="middle")
        drawing.arrow(750, top + 17, 786, top + 17, colour="v", width=2)
        drawing.text(722, top + 21, "λ v", colour="v", size=12, weight="600")
        drawing.arrow(850, top - 2, 850, top - 21)
    drawing.arrow(672, 170, 710, 170)
    drawing.text(930, 92, "dance", colour="pos", size=14, weight="600")
    drawing.text(930, 112, "instead of vigil", colour="soft", size=12)
    return drawing.svg()


if __name__ == "__main__":
    for name, palette in PALETTES.items():
        (IMAGES / f"method-{name}.svg").write_text(draw(palette), encoding="utf-8")
