"""Where a report comes from: the command, the model, the data, the settings and the versions."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from grains_ref.evaluation.endpoint import LONG_PART, address_of, hidden
from grains_ref.report.page import Section
from grains_ref.vectors import SteeringVectors

_SECRET_NAME = re.compile(r"key|token|secret|passw", re.IGNORECASE)  # of an environment variable
_ADDRESS = re.compile(r"https?://[^\s'\"]+")


def masked_command(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The command as it was typed, without what `grains_ref.evaluation.endpoint` calls a secret.

    Values in the query of an address, and a user before its host, become ***; so does every value of an environment
    variable that is named like a secret, wherever a piece of it stands.
    """
    variables = os.environ if environment is None else environment
    secrets = [value for name, value in variables.items() if _SECRET_NAME.search(name) and value]
    text = shlex.join([_ADDRESS.sub(_masked_address, argument) for argument in arguments])
    return hidden(text, secrets, part=LONG_PART)


def _masked_address(match: re.Match[str]) -> str:
    address, question, query = match[0].partition("#")[0].partition("?")
    scheme, _, rest = address.partition("://")
    _, at, place = rest.rpartition("@")
    host, _, path = place.partition("/")
    try:
        readable = address_of(f"{scheme}://{host}{question}{query}", path).shown
    except ValueError:  # nothing that a request could be sent to
        return f"{scheme}://***"
    return readable.replace("://", "://***@", 1) if at else readable


@dataclass(frozen=True)
class Provenance(Section):
    """Facts as (name, value), and the command.

    command: as `masked_command` gives it; "" where there was none.
    """

    facts: Sequence[tuple[str, str]]
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    title: str = "Provenance"

    template: ClassVar[str] = "provenance.html"

    def context(self) -> dict[str, Any]:
        """See `Section`."""
        return {"facts": self.facts, "command": self.command, "versions": self.versions}


def facts_of(vectors: SteeringVectors) -> list[tuple[str, str]]:
    """What the header of a vectors file says of where it comes from."""
    left_out = {"diagnostics", "signal", "versions"}  # they have places of their own in a report
    return [(name, words) for name, words in vectors.summary() if name not in left_out]
