"""Every file of the repository that a page links to has a page of its own, so that no link leaves the site.

A link such as `../grains_ref/grains.py` works in a checkout and where a forge shows it.  On the site the same link
leads to `source/grains_ref/grains.py`, which shows the file; a folder is shown as the list of what is in it.
CONTRIBUTING.md and CHANGELOG.md become pages like any other.
"""

from __future__ import annotations

import posixpath
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
ADOPTED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".ini": "ini", ".yml": "yaml", ".mjs": "javascript"}


def in_repository(page: str, target: str) -> str | None:
    """The path, from the root, of what a page of docs/ links to; None where the target is in docs/ itself."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith(("docs/", "..")) else path


def moved(page: str, markdown: str) -> str:
    """The page's text with its links to files of the repository turned to their pages."""

    def turned(link: re.Match[str]) -> str:
        path, anchor = in_repository(page, link[1]), link[2] or ""
        if path is None:
            return link[0]
        return posixpath.relpath(ADOPTED.get(path, f"source/{path}.md"), posixpath.dirname(page) or ".") + anchor

    return LINK.sub(turned, markdown)


def from_root(text: str) -> str:
    """The links of a file at the root of the repository, as if the file lay in docs/."""

    def turned(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        return (path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}") + anchor

    return LINK.sub(turned, text)


def linked(files: Files) -> Iterator[str]:
    """Every path outside docs/ that a page links to."""
    for file in files.documentation_pages():
        for target, _ in LINK.findall(file.content_string):
            path = in_repository(file.src_uri, target)
            if path is not None and path not in ADOPTED:
                yield path


def listing(folder: str) -> str:
    """What is in a folder, as git has it."""
    names = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return names


def page_of(path: str) -> str:
    """The page that shows a file or a folder.

    Raises:
        FileNotFoundError: there is no such file, which a strict build takes for a dead link.
    """
    file = ROOT / path
    if file.is_dir():
        language, text = "text", listing(path)
    else:
        language, text = LANGUAGES.get(file.suffix, "text"), file.read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n\n# {path}\n\n"
    return head + f"``````{language}\n{text.rstrip()}\n``````\n"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages."""
    for name, page in ADOPTED.items():
        if name != "README.md":
            text = from_root((ROOT / name).read_text(encoding="utf-8"))
            files.append(File.generated(config, page, content=text))
    for path in sorted(set(linked(files))):
        files.append(File.generated(config, f"source/{path}.md", content=page_of(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn the links, but for those of shown files, which are code."""
    name = page.file.src_uri
    return markdown if name.startswith("source/") else moved(name, markdown)
