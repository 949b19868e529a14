"""Scores of image tokens land on the pixels that the tokens see, and the figure shows them without lying."""

from __future__ import annotations

import io
import os
import sys
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from shared import first_quick

from grains_ref.report import overlay
from grains_ref.report.overlay import LONGEST, Panel, overlay_figure, score_map
from grains_ref.report.tokens import NEGATIVE, POSITIVE

pytestmark = pytest.mark.cpu


class Patch(NamedTuple):
    view: str
    row: int
    column: int
    box: tuple[float, float, float, float]


def at(left: float, top: float, right: float, bottom: float) -> Patch:
    return Patch("base", 0, 0, (left, top, right, bottom))


def grid(view: str, rows: int, columns: int, size: tuple[int, int], *, newline: bool = False) -> list[Patch]:
    width, height = size
    x, y = [width * i / columns for i in range(columns + 1)], [height * i / rows for i in range(rows + 1)]
    patches = []
    for r in range(rows):
        patches += [Patch(view, r, c, (x[c], y[r], x[c + 1], y[r + 1])) for c in range(columns)]
        if newline:
            patches.append(Patch("newline", r, columns, (width, y[r], width, y[r + 1])))
    return patches


# ---------------------------------------------------------------------------------------------- the score map


def test_a_score_is_spread_evenly_over_the_whole_pixels_of_its_box() -> None:
    assert score_map((4, 2), [at(1, 0, 4, 2)], [12.0]).tolist() == [[0, 2, 2, 2], [0, 2, 2, 2]]


def test_a_part_of_a_pixel_gets_its_part_of_the_score() -> None:
    across = score_map((3, 2), [at(0.5, 1, 2, 2)], [3.0])
    assert across.tolist() == [[0, 0, 0], [1, 2, 0]]
    down = score_map((2, 3), [at(1, 0.75, 2, 2.25)], [6.0])
    assert down.tolist() == [[0, 1], [0, 4], [0, 1]]
    corner = score_map((3, 2), [at(0.5, 0.25, 2.5, 1.25)], [-8.0])  # area 2, so -4 for each whole pixel
    assert corner.tolist() == [[-1.5, -3, -1.5], [-0.5, -1, -0.5]]
    within = score_map((2, 1), [at(1.25, 0.25, 1.5, 0.5)], [5.0])
    assert within.tolist() == [[0, 5]]


def test_two_views_of_one_place_add_up() -> None:
    patches = [at(0, 0, 2, 2), Patch("tile", 0, 0, (0, 0, 1, 1)), Patch("tile", 1, 1, (1, 1, 2, 2))]
    assert score_map((2, 2), patches, [4.0, 10.0, -1.0]).tolist() == [[11, 1], [1, 0]]


def test_what_sticks_out_of_the_picture_is_cut_off_and_the_rest_gets_the_score() -> None:
    assert score_map((2, 1), [at(-3, -1, 1, 1)], [5.0]).tolist() == [[5, 0]]
    assert score_map((2, 2), [at(1.5, 1.5, 9, 9)], [5.0]).tolist() == [[0, 0], [0, 5]]


def test_words_line_ends_and_boxes_outside_are_left_out() -> None:
    newline = Patch("newline", 0, 2, (2, 0, 2, 1))
    outside = [at(2, 0, 3, 1), at(-1, 0, 0, 1), at(0, 1, 1, 5), at(0, -3, 1, 0)]
    patches = [None, newline, at(1, 0, 1, 1), at(0, 0.5, 2, 0.5), *outside]
    assert score_map((2, 1), patches, [7.0] * 8).tolist() == [[0, 0]]
    assert score_map((2, 1), [], []).tolist() == [[0, 0]]


def test_a_large_picture_gets_a_coarser_map_of_the_same_sum() -> None:
    size = (4000, 2000)
    density = score_map(size, [at(2000, 0, 3000, 1000), at(0, 1999, 4000, 2000)], [3.0, -1.0])
    assert density.shape == (LONGEST // 2, LONGEST)
    assert density.sum() == pytest.approx(2)
    assert density[: LONGEST // 4, LONGEST // 2 : LONGEST * 3 // 4].sum() == pytest.approx(3)
    assert density[-1].sum() == pytest.approx(-1)
    assert score_map((LONGEST, 3), [], []).shape == (3, LONGEST)
    assert score_map((3, LONGEST), [], []).shape == (LONGEST, 3)
    assert score_map((9 * LONGEST, 1), [at(0, 0, 9 * LONGEST, 1)], [2.0]).sum() == pytest.approx(2)


edge = st.floats(-3, 12) | st.integers(-3, 12).map(float)
boxes = st.tuples(edge, edge, edge, edge).map(
    lambda e: (min(e[0], e[2]), min(e[1], e[3]), max(e[0], e[2]), max(e[1], e[3]))
)
scored = st.lists(st.tuples(st.none() | boxes, st.floats(-100, 100)), max_size=5)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), scored)
def test_every_pixel_gets_the_share_of_the_boxes_that_it_covers(width: int, height: int, scored: list) -> None:
    patches = [None if box is None else at(*box) for box, _ in scored]
    a = [score for _, score in scored]
    density = score_map((width, height), patches, a)
    expected, total = np.zeros((height, width)), 0.0
    for box, score in scored:
        left, top, right, bottom = box or (0, 0, 0, 0)
        across = [max(min(right, x + 1) - max(left, x), 0) for x in range(width)]
        down = [max(min(bottom, y + 1) - max(top, y), 0) for y in range(height)]
        if max(across) > 0 and max(down) > 0:
            total += score
            for y in range(height):
                for x in range(width):
                    expected[y, x] += score * (across[x] / sum(across)) * (down[y] / sum(down))
    np.testing.assert_allclose(density, expected, rtol=1e-9, atol=1e-9)
    assert density.sum() == pytest.approx(total, abs=1e-9)


@settings(max_examples=20)
@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_the_sum_is_kept_at_any_size(width: int, height: int, rows: int, columns: int, seed: int) -> None:
    patches = [*grid("base", rows, columns, (width, height)), *grid("tile", 2, 3, (width, height), newline=True), None]
    a = np.random.default_rng(seed).normal(size=len(patches))
    seen = sum(s for s, p in zip(a, patches, strict=True) if p is not None and p.view != "newline")
    density = score_map((width, height), patches, a)
    assert max(density.shape) <= LONGEST
    assert density.sum() == pytest.approx(seen, abs=1e-9)


@pytest.mark.parametrize(
    ("size", "patches", "a", "message"),
    [
        ((2, 2), [None], [1.0, 2.0], r"shape \(2,\) for 1 patches.*Text tokens count too"),
        ((2, 2), [None], [[1.0]], r"shape \(1, 1\) for 1 patches"),
        ((2, 2), [None, None], [0.0, float("nan")], "token 1 has the score nan"),
        ((2, 2), [at(1, 0, 0, 1)], [1.0], r"token 0 has the box \(1, 0, 0, 1\).*left <= right"),
        ((2, 2), [at(0, 1, 1, 0)], [1.0], "top <= bottom"),
        ((2, 2), [at(0, 0, float("inf"), 1)], [1.0], "token 0 has the box"),
        ((0, 2), [], [], "at least 1 x 1 pixels, found 0 x 2"),
    ],
)
def test_scores_that_cannot_be_placed_are_refused(size: tuple, patches: list, a: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_map(size, patches, a)


# ---------------------------------------------------------------------------------------------- the figure


def shapes(size: tuple[int, int] = (84, 84)) -> Image.Image:
    picture = Image.new("RGB", size, (250, 250, 250))
    ImageDraw.Draw(picture).ellipse((size[0] // 8, size[1] // 8, size[0] // 3, size[1] // 3), fill=(200, 30, 30))
    return picture


def drawn(
    monkeypatch: pytest.MonkeyPatch, path: Path, picture: Image.Image, panels: list[Panel], title: str, **options: bool
) -> Figure:
    """The figure that is written, for a look at its parts; with `really=False` it is not painted, which is slow."""
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, target: io.BytesIO, **arguments: object) -> None:
        if options.get("really", True):
            save(figure, target, **arguments)
        else:
            target.write(b"not painted")
        kept.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    overlay_figure(path, picture, panels, title=title)
    monkeypatch.undo()
    return kept[0]


def frames(axis: object) -> tuple[LineCollection, LineCollection, LineCollection, LineCollection]:
    """Dark and light lines toward chosen, then toward rejected."""
    return tuple(c for c in axis.collections if isinstance(c, LineCollection))  # type: ignore[attr-defined,return-value]


def test_a_panel_shows_the_map_over_the_dimmed_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (80, 40)
    patches = [None, *grid("base", 2, 4, size), *grid("tile", 1, 2, size, newline=True)]
    a = torch.linspace(-1, 2, len(patches))
    panels = [Panel("first", patches, a), Panel("second", patches, 3 * a)]
    figure = drawn(monkeypatch, tmp_path / "f.png", shapes(size), panels, "Two methods")
    plain, *scored, bar = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["the picture, 80 x 40 pixels", "first", "second", ""]
    assert figure.get_suptitle() == "Two methods"
    assert np.array_equal(plain.images[0].get_array(), np.asarray(shapes(size)))
    for axis, panel in zip(scored, panels, strict=True):
        below, above = (image.get_array() for image in axis.images)
        assert below.std(axis=2).max() == 0  # grey
        assert below.min() >= 0.5  # and light
        assert below[9, 18, 0] < below[39, 79, 0] - 0.2  # but the picture is still there
        np.testing.assert_allclose(above, score_map(size, patches, panel.a) * 80 * 40 / 100)
        assert above[5, 5] < 0 < above[35, 75]  # left above, right below
    assert {image.get_extent() == [0, 80, 40, 0] for axis in (plain, *scored) for image in axis.images} == {True}
    largest = max(np.abs(axis.images[1].get_array()).max() for axis in scored)
    assert {axis.images[1].get_clim() for axis in scored} == {(-largest, largest)}  # one scale for all, symmetric
    assert "nats per 1 % of the picture" in bar.get_ylabel()
    with Image.open(tmp_path / "f.png") as written:
        assert written.format == "PNG"
        assert written.width > 800


def test_green_is_toward_chosen_red_toward_rejected_and_zero_is_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = Panel("signs", [at(0, 0, 42, 84), at(42, 0, 84, 84)], [-1.0, 1.0])
    figure = drawn(monkeypatch, tmp_path / "f.png", shapes(), [panel], "Signs")
    colours = figure.axes[1].images[1].to_rgba(0.02 * np.array([[-1.0, -0.1, 0.0, 0.1, 1.0]]))[0]
    for colour, rgb in zip(colours, (NEGATIVE, NEGATIVE, None, POSITIVE, POSITIVE), strict=True):
        if rgb is not None:
            np.testing.assert_allclose(colour[:3], np.array(rgb) / 255, atol=0.01)
    alphas = colours[:, 3]
    assert alphas == pytest.approx(alphas[::-1], abs=0.01)
    assert alphas[2] < 0.01 < alphas[1] < alphas[0]
    assert alphas[1] == pytest.approx(0.1 * alphas[0], abs=0.02)  # no clear gap in the middle of the scale
    with Image.open(tmp_path / "f.png") as written:  # and so in the file, in the middle of each half
        box = figure.axes[1].get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        dpi = 130 / figure.dpi
        y = written.height - round(dpi * (box.y0 + box.height / 4))
        left, right = (written.convert("RGB").getpixel((round(dpi * (box.x0 + f * box.width)), y)) for f in (0.2, 0.8))
    assert left[0] > left[1] + 50
    assert right[1] > right[0] + 50


def test_selected_patches_have_solid_and_dashed_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (90, 60)
    patches = [None, *grid("base", 2, 3, size), *grid("tile", 2, 3, size, newline=True)]
    panel = Panel("frames", patches, np.zeros(len(patches)), pos=[0, 1, 2, 8, 10], neg=[6], words="sky +0.2")
    figure = drawn(monkeypatch, tmp_path / "f.png", shapes(size), [panel], "Frames", really=False)
    dark, solid, dark_too, dashed = frames(figure.axes[1])
    # base 0,0 and 0,1 share a side: six are left; tile 0,1 is of another view; a word and a newline have none
    assert (len(solid.get_segments()), len(dashed.get_segments())) == (6 + 4, 4)
    for light, below in ((solid, dark), (dashed, dark_too)):
        assert light.get_colors()[0][:3].min() > 0.9
        assert below.get_colors()[0][:3].max() < 0.2
        assert all(wide > thin for wide, thin in zip(below.get_linewidths(), light.get_linewidths(), strict=True))
    assert solid.get_linestyles()[0][1] is None
    assert dashed.get_linestyles()[0][1] is not None
    corners = np.concatenate(dashed.get_segments())
    assert np.all((corners[:, 0] > 60) & (corners[:, 0] < 90))  # just inside base 1,2
    assert np.all((corners[:, 1] > 30) & (corners[:, 1] < 60))
    assert np.ptp(corners, axis=0).min() > 20
    assert figure.axes[1].get_xlabel() == "4 of 6 selected tokens lie on the picture\nsky +0.2"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "selected toward chosen",
        "selected toward rejected",
    ]


def test_frames_are_drawn_on_every_side_where_the_selection_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (90, 90)
    patches = grid("base", 3, 3, size)
    ring = [j for j in range(9) if j != 4]
    figure = drawn(
        monkeypatch,
        tmp_path / "f.png",
        shapes(size),
        [Panel("ring", patches, [0] * 9, ring, [4])],
        "Ring",
        really=False,
    )
    _, solid, _, dashed = frames(figure.axes[1])
    sides = {tuple(np.round(np.mean(side, axis=0) / 15).astype(int)) for side in solid.get_segments()}
    outer = {(x, y) for i in (1, 3, 5) for x, y in ((0, i), (6, i), (i, 0), (i, 6))}
    assert sides == outer | {(2, 3), (4, 3), (3, 2), (3, 4)}  # midpoints, in half patches
    assert len(dashed.get_segments()) == 4


def test_tiny_pictures_stay_crisp_and_large_ones_are_drawn_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = drawn(monkeypatch, tmp_path / "t.png", shapes((12, 12)), [Panel("p", [], [])], "Tiny", really=False)
    assert tiny.axes[0].images[0].get_interpolation() == "nearest"
    large = drawn(monkeypatch, tmp_path / "l.png", shapes((1500, 1000)), [Panel("p", [], [])], "Large", really=False)
    assert large.axes[0].images[0].get_array().shape == (683, LONGEST, 3)
    assert large.axes[0].images[0].get_interpolation() != "nearest"
    assert list(large.axes[0].images[0].get_extent()) == [0, 1500, 1000, 0]


@pytest.mark.parametrize(
    ("size", "count"), first_quick([((84, 84), 3), ((640, 480), 1), ((1000, 120), 2), ((90, 900), 3)], 2)
)
def test_nothing_overlaps_and_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], count: int
) -> None:
    patches = grid("base", 6, 6, size)
    a = np.linspace(-1, 1, 36)
    words = "what +0.41, shape -0.22, is +0.11, in +0.05, the -0.01, middle -0.88, of +0.02, it -0.07"
    panels = [Panel("integrated gradients, k = 20 %, m = 50", patches, a, [35], [0], words)] * count
    title = "A title of some length, as long as a question can be: what is the shape in the middle of the picture?"
    title += " And which colour has the one to the left of it, above the line?"
    figure = drawn(monkeypatch, tmp_path / "f.png", shapes(size), panels, title)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    parts = [axis.get_tightbbox(renderer) for axis in figure.axes if axis.get_visible()]
    parts += [figure.legends[0].get_window_extent(renderer)]
    parts += [text.get_window_extent(renderer) for text in figure.texts]
    assert len(parts) == 1 + count + 1 + 1 + len(figure.texts)
    for part in parts:
        assert part.x0 >= -1
        assert part.y0 >= -1
        assert part.x1 <= figure.bbox.x1 + 1
        assert part.y1 <= figure.bbox.y1 + 1
    for one, other in combinations(parts, 2):
        assert not one.padded(-1).overlaps(other.padded(-1))
    for axis in figure.axes[:-1]:
        box = axis.get_window_extent(renderer)
        assert box.width / box.height == pytest.approx(size[0] / size[1], rel=0.02)
        assert box.width * box.height > 0.25 * (figure.bbox.width * figure.bbox.height) / 30


def test_signs_of_mathematics_in_words_are_only_letters(tmp_path: Path) -> None:
    panel = Panel("$\\q$", [None], [0.0], words="cost $\\frac$ or")
    overlay_figure(tmp_path / "f.png", shapes(), [panel], title="what is $\\x$?")
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_a_transparent_picture_is_drawn_over_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(
        monkeypatch, tmp_path / "f.png", Image.new("RGBA", (4, 4)), [Panel("p", [], [])], "Clear", really=False
    )
    assert figure.axes[0].images[0].get_array().min() == 255


def test_a_failed_drawing_leaves_no_file_and_an_old_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.png"
    path.write_bytes(b"old")

    def fail(self: Figure, target: io.BytesIO, **_: object) -> None:
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        overlay_figure(path, shapes(), [Panel("p", [], [])], title="Broken")
    assert os.listdir(tmp_path) == ["f.png"]
    assert path.read_bytes() == b"old"


def test_the_callers_plots_are_left_alone(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules and sys.modules["matplotlib.pyplot"].get_fignums()
    overlay_figure(tmp_path / "f.png", shapes(), [Panel("p", [], [])], title="Quiet")
    assert ("matplotlib.pyplot" in sys.modules and sys.modules["matplotlib.pyplot"].get_fignums()) == before
    assert os.listdir(tmp_path) == ["f.png"]


@pytest.mark.parametrize(
    ("name", "panels", "message"),
    [
        ("f.pdf", [Panel("p", [], [])], r"f\.pdf.*ends in \.png"),
        ("f.png", [], "no panel"),
        ("f.png", [Panel("p", [None], [0.0], pos=[1])], "panel 'p': token 1 is selected, but there are 1 tokens"),
        ("f.png", [Panel("p", [None], [0.0], neg=[-1])], "token -1 is selected"),
        ("f.png", [Panel("p", [None], [0.0], pos=[0], neg=[0])], "token 0 is selected twice"),
        ("f.png", [Panel("p", [None], [0.0, 1.0])], "for 1 patches"),
    ],
)
def test_a_figure_that_would_mislead_is_refused(tmp_path: Path, name: str, panels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay_figure(tmp_path / name, shapes(), panels, title="No")
    assert os.listdir(tmp_path) == []


def test_line_breaks_in_titles_and_captions_stay() -> None:
    assert overlay._wrapped("one two three\nfour", 8) == "one two\nthree\nfour"


def test_characters_that_are_not_to_be_seen_are_written_out_in_the_figure(tmp_path: Path) -> None:
    assert overlay._wrapped("a\x1b[2J\u202eb\u2028c\x0cd", 80) == r"a\x1b[2J\u202eb\u2028c\x0cd"
    picture = Image.new("RGB", (20, 20))
    panel = Panel("\x1b[31m<b>$x^2$", [Patch("base", 0, 0, (0, 0, 20, 20))], [1.0], pos=(0,), words="\x00\ud83d \r\n")
    overlay_figure(tmp_path / "figure.png", picture, [panel], title="\u200f\x07 title \ud83d")
    with pytest.raises(TypeError, match="panels is a Panel"):
        overlay_figure(tmp_path / "figure.png", picture, panel, title="")  # type: ignore[arg-type]
