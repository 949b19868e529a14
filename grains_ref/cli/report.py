"""`grains-ref report`, and the option `--report` of the commands that measure something."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grains_ref.cli import console
from grains_ref.files import FileError, check_target
from grains_ref.files.processes import first

if TYPE_CHECKING:
    from grains_ref.grains import HyperParameters
    from grains_ref.models import HuggingFaceModel
    from grains_ref.report.page import Section

ReportOption = Annotated[
    Path | None,
    typer.Option("--report", help="Also write a report to look at: one HTML file.", show_default=False),
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", help="Also write a page to look at: one HTML file.", show_default=False)
]


@console.guarded
def report(
    folder: Annotated[
        Path, typer.Argument(help="A folder with vectors files, or with what --json printed.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--out", help="The page to write. (default: DIR/report.html)", show_default=False)
    ] = None,
) -> None:
    """Draw a report of a folder: its vectors files, what --json printed there, a demo, a reproduction."""
    from grains_ref.report.folder import folder_report

    path = output or folder / "report.html"
    if not folder.is_dir():
        raise FileError(f"{folder} is no folder; name one with vectors files, or with what --json printed")
    check_page(path)
    made, left_out = folder_report(folder, command=typed_command())
    for reason in left_out:
        console.err.print(f"left out: {reason}", style="yellow")
    made.write(path)
    console.out.print(f"Written: {path} ({len(made.sections)} sections)")


def check_page(path: Path | None) -> None:
    """Refuse before the work a page that could not be written.

    Raises:
        FileError: it cannot be written, or its name does not end in .html, as browsers expect.
    """
    if path is None:
        return
    if path.suffix.lower() not in (".html", ".htm"):
        raise FileError(f"{path} would be a page; name a file that ends in .html, so that browsers open it")
    check_target(path)


def write_report(path: Path, title: str, sections: Sequence[Section], facts: Sequence[tuple[str, str]]) -> None:
    """Write a page that ends in where it comes from, and say so on standard error.

    facts: name and words, beside the command and the versions.
    """
    from grains_ref.report.page import Report
    from grains_ref.report.provenance import Provenance
    from grains_ref.vectors import library_versions

    made = Report(title, [*sections, Provenance(facts, typed_command(), library_versions())])
    first(lambda: made.write(path))
    console.err.print(f"the report: {path}")


def typed_command() -> str:
    """The command that is running, without secrets."""
    from grains_ref.report.provenance import masked_command

    return masked_command(["grains-ref", *sys.argv[1:]])


def model_facts(model: HuggingFaceModel, *, chat: bool) -> list[tuple[str, str]]:
    """Which model it was, and what its prompts went through."""
    template, date = ("none: plain texts", "none")
    if chat:
        template, date = model.prompts.template_digest or "none", model.prompts.date or "none"
    return [
        ("model", model.name),
        ("model fingerprint", model.fingerprint()),
        ("dtype", str(model.hf.dtype).removeprefix("torch.")),
        ("device", str(model.device)),
        ("chat template", template),
        ("date in the chats", date),
    ]


def settings_fact(hp: HyperParameters) -> tuple[str, str]:
    """All hyper-parameters."""
    return "hyper-parameters", ", ".join(f"{name}={value}" for name, value in hp.as_dict().items())
