"""Notebooks become pages, with the output that is stored in them.

`python docs/_site/notebooks.py` runs all of them anew and stores what they print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"


def fenced(markdown: str) -> str:
    """Output, which nbconvert indents, as blocks of text; blank lines around it are left out."""
    lines: list[str] = []
    inside_fence, output = False, []
    for line in [*markdown.splitlines(), ""]:
        if not inside_fence and (line.startswith("    ") or (output and not line.strip())):
            output.append(line[4:])
            continue
        printed = [text for text in output if text.strip()]
        if printed:
            lines += ["```text", *printed, "```"]
        if output:
            lines.append("")
            output = []
        inside_fence ^= line.startswith("```")
        lines.append(line)
    return "\n".join(lines)


def on_files(files: Any, *, config: Any) -> Any:
    """Add a page, and its pictures, for each notebook."""
    from mkdocs.structure.files import File
    from nbconvert import MarkdownExporter

    for path in sorted(FOLDER.glob("*.ipynb")):
        markdown, resources = MarkdownExporter().from_filename(str(path), {"output_files_dir": path.stem})
        line = f"*This page is a notebook: [{path.name}]({path.name}).*"
        title, rest = markdown.strip().split("\n", 1)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=f"{title}\n\n{line}\n{fenced(rest)}"))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def run_all() -> None:
    """Run every notebook in the root of the repository and store its output."""
    import nbformat
    from nbclient import NotebookClient

    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        where = {"metadata": {"path": str(FOLDER.parents[1])}}
        NotebookClient(notebook, timeout=300, resources=where, coalesce_streams=True).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        nbformat.write(notebook, path)
        print(path.name)


if __name__ == "__main__":
    run_all()
