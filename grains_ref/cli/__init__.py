"""The command `grains-ref`, one file per group of commands.

| file | holds |
|---|---|
| `commands` | the list of all commands, `--version`, `--debug` |
| `demo`, `look`, `fit`, `choose`, `evaluate`, `generate` | demo; attribute and inspect; fit; sweep; eval; generate |
| `side_effects` | the option `--side-effects` of eval |
| `serve` | serve |
| `report` | report, and the option `--report` of the others |
| `export` | export and import |
| `datasets`, `reproduce`, `conform` | the paper's datasets; its tables and figures; is a port right? |
| `conform_results` | what the JSON of a run says: a summary for a README, the difference of two |
| `common`, `lists` | options and helpers of several commands; lists of layers and numbers |
| `console` | where is printed, and how a command fails |
"""

from grains_ref.cli.commands import app, main

__all__ = ["app", "main"]
