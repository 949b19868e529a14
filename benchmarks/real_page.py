"""Renew docs/real.md and its figures from a folder of `grains-ref reproduce --rung real --all --out FOLDER`.

    python benchmarks/real_page.py FOLDER

What stands between the page's two marks is made anew: what is finished and what is missing, all tables, and how often
the signal line was right.  Everything else is written by hand and stays.  No model is run; signals that cells of an
earlier run lack are taken by the `reproduce` command itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grains_ref.demo.real import BEHAVIOURS
from grains_ref.files import write_whole
from grains_ref.reproduction import real_pages, real_signal
from grains_ref.reproduction.real import SPLITS, cells, finished

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Read the cells, write the page and both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args()
    wanted = cells(tuple(BEHAVIOURS), SPLITS)
    found, subjects = finished(options.folder, wanted)
    page = options.docs / "real.md"
    write_whole(page, real_pages.renewed(page.read_text(), found, subjects, wanted))
    curves = options.docs / "img" / "real_curves.png"
    real_pages.draw_curves(found, curves)
    curves.unlink(missing_ok=True)  # the page shows the SVG beside it
    real_signal.draw(real_signal.points(found, subjects), options.docs / "img" / "real_signal.svg")
    print(real_pages.what_was_run(found, wanted))


if __name__ == "__main__":
    main()
