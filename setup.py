"""The README as a package index shows it; everything else about the package is in pyproject.toml.

Links to files of the repository lead nowhere on an index.  Where pyproject.toml names the repository, under
`[project.urls]` as `Repository`, they are made whole; where it does not, the README is taken as it is.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\]\([^)]*\))*)\]\((?!https?://|mailto:|#)([^)\s]+)\)")


def whole_links(readme: str, repository: str) -> str:
    """Links relative to the repository's root as addresses there: pictures as files, all else as pages."""
    if not repository:
        return readme

    def whole(link: re.Match[str]) -> str:
        mark, words, target = link.groups()
        kind = "raw" if mark else "blob"
        return f"{mark}[{words}]({repository.rstrip('/')}/{kind}/main/{target})"

    return LINK.sub(whole, readme)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    setup(
        long_description=whole_links(
            (ROOT / "README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Repository", "")
        ),
        long_description_content_type="text/markdown",
    )
