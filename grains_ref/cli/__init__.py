"""The command `grains-ref`: one file per group of commands, on `common` (options and helpers) and `console`."""

from grains_ref.cli.commands import app, main

__all__ = ["app", "main"]
