"""What several project files say about versions is one and the same."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

import grains_ref

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8"))
TOX = (ROOT / "tox.ini").read_text(encoding="utf-8")
PYTHONS = [
    version
    for classifier in PROJECT["project"]["classifiers"]
    if (version := classifier.removeprefix("Programming Language :: Python :: ")) != classifier and "." in version
]


def pins(name: str) -> dict[str, str]:
    """Every pin of a constraints file, those of the files that it names included."""
    path = ROOT / name
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-c "):
            found |= pins(str(path.parent.relative_to(ROOT) / line.removeprefix("-c ")))
        elif not line.startswith("#"):
            package, version = line.split("==")
            assert package not in found, f"{name} pins {package} twice"
            found[package] = version
    return found


def test_the_oldest_python_is_the_same_for_pip_ruff_mypy_and_the_reader() -> None:
    oldest = PYTHONS[0]
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    for page in ("README.md", "CONTRIBUTING.md"):
        assert f"Python {oldest} or newer" in (ROOT / page).read_text(encoding="utf-8"), page


def test_the_workflow_runs_every_python_on_the_oldest_and_the_pinned_transformers() -> None:
    matrix = WORKFLOW["jobs"]["suite"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS
    (oldest,) = (d.removeprefix("transformers>=") for d in PROJECT["project"]["dependencies"] if "transformers" in d)
    assert matrix["transformers"] == [oldest, pins("constraints.txt")["transformers"].removesuffix(".0")]
    assert f"[testenv:{{{','.join(PYTHONS)}}}-transformers{{" in TOX


def test_the_workflow_names_only_environments_of_tox() -> None:
    jobs = WORKFLOW["jobs"]
    named = set(jobs["check"]["strategy"]["matrix"]["environment"])
    named |= {f"peer-{name}" for name in jobs["peer"]["strategy"]["matrix"]["peer"]}
    named |= set(
        re.findall(r"run: tox -e ([a-z-]+)$", (ROOT / ".github/workflows/checks.yml").read_text(), re.MULTILINE)
    )
    assert named >= {"lint", "peer-jax", "planted-bugs"}
    assert {name for name in named if f"[testenv:{name}]" not in TOX} == set()


@pytest.mark.parametrize("version", ["4.57", "5.0", "5.17"])
def test_a_constraints_file_pins_the_transformers_of_its_name(version: str) -> None:
    found = pins(f"constraints/transformers-{version}.txt")
    assert found["transformers"].startswith(f"{version}.")
    assert found.keys() == pins("constraints.txt").keys()


def test_the_wheel_holds_every_module_and_every_other_file_of_the_package() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in (ROOT / "grains_ref").rglob("__init__.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == {
        name for name in listed if not name.startswith(("grains_ref.tiny_models", "grains_ref.fixtures"))
    }
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for path in (ROOT / "grains_ref").rglob("*"):
        if not path.is_file() or path.suffix in (".py", ".pyc") or "__pycache__" in path.parts:
            continue
        patterns = [ROOT / package.replace(".", "/") / pattern for package in data for pattern in data[package]]
        assert any(path.match(str(pattern)) for pattern in patterns), f"{path.relative_to(ROOT)} is not in the wheel"


def test_every_skip_for_a_missing_package_names_an_environment_of_tox() -> None:
    named = set()
    for path in (ROOT / "tests").rglob("*.py"):
        named |= set(re.findall(r"tox -e (peer-[a-z-]+)", path.read_text(encoding="utf-8")))
    assert named == set(re.findall(r"^\[testenv:(peer-[a-z-]+)\]", TOX, re.MULTILINE))


def test_the_citation_is_of_this_version_and_this_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == grains_ref.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"] == PROJECT["project"]["authors"]
    paper = citation["preferred-citation"]
    (entry,) = re.findall(r"```bibtex\n(.*?)```", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    fields = dict(
        re.findall(
            r"(\w+) +?= \{(.*)\}",
            entry.replace("{GrAInS}", "GrAInS").replace("{LLMs}", "LLMs").replace("{VLMs}", "VLMs"),
        )
    )
    assert fields["title"] == paper["title"]
    assert fields["author"] == " and ".join(f"{who['family-names']}, {who['given-names']}" for who in paper["authors"])
    assert fields["journal"] == paper["journal"]
    assert fields["year"] == str(paper["year"])


def test_every_link_of_the_readme_is_whole_on_an_index_where_the_repository_is_known() -> None:
    whole_links = runpy.run_path(str(ROOT / "setup.py"))["whole_links"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert whole_links(readme, "") == readme
    for_index = whole_links(readme, "https://example.org/grains/")
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", for_index, flags=re.DOTALL))
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []
    before = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", readme, flags=re.DOTALL))
    for old, new in zip(before, targets, strict=True):
        if old != new:
            assert re.fullmatch(rf"https://example\.org/grains/(raw|blob)/main/{re.escape(old)}", new)
            assert (ROOT / old.partition("#")[0]).exists()
    assert "![From pairs of answers to a steered model](https://example.org/grains/raw/main/docs/img/" in for_index
