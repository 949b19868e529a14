"""What pages say about the package is so: error texts, figures, names of files."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import yaml
from page_blocks import PAGES, ROOT, blocks_of

pytestmark = pytest.mark.cpu
DOCS = ROOT / "docs"


@cache
def texts_of_the_package() -> str:
    """Every string of the package; what an f-string puts in stands as …"""
    found: list[str] = []
    for path in sorted((ROOT / "grains_ref").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_that_troubleshooting_quotes_is_one_of_the_package() -> None:
    quoted = [line for block in blocks_of(DOCS / "troubleshooting.md") for line in block.text.splitlines()]
    assert len(quoted) > 40
    texts = texts_of_the_package()
    for line in quoted:
        pieces = [piece.strip() for piece in line.split("…") if len(piece.strip()) > 7]
        assert pieces, f"{line!r}: nothing of it but names and numbers"
        assert [piece for piece in pieces if piece not in texts] == [], line


def pages_in(entry: object) -> list[str]:
    """The pages of a navigation: a page, a list of entries, or titles with what is below them."""
    if isinstance(entry, str):
        return [entry]
    below = entry.values() if isinstance(entry, dict) else entry
    assert isinstance(below, Iterable)
    return [page for part in below for page in pages_in(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = pages_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(set(listed)) == sorted(listed)
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    pages |= {f"notebooks/{path.stem}.md" for path in (DOCS / "notebooks").glob("*.ipynb")}
    assert pages | {"commands.md", "contributing.md", "changelog.md"} == set(listed)


def test_every_picture_is_shown_on_a_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    pictures = [path for path in sorted((DOCS / "img").iterdir()) if path.suffix in (".png", ".svg", ".webp")]
    assert [path.name for path in pictures if f"img/{path.name}" not in text] == []


def test_a_link_to_a_file_of_the_repository_leads_to_a_file() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text(encoding="utf-8")):
            made = target.split("/")[-1] in ("commands.md", "contributing.md", "changelog.md")
            made = made or "notebooks/" in target
            assert made or (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_tests_that_pages_name_exist() -> None:
    for path in PAGES:
        for name in re.findall(r"`((?:tests|benchmarks|fixtures)/[a-z0-9_./-]+)`", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.relative_to(ROOT)}: {name}"


@pytest.mark.parametrize("path", sorted((DOCS / "notebooks").glob("*.ipynb")), ids=lambda path: Path(path).stem)
def test_a_notebook_is_stored_with_its_output_and_without_an_error(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert any(cell["outputs"] for cell in cells)
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
