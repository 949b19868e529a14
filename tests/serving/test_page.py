"""docs/serving.md: its requests are sent to a server, and its Python reads as a client's does."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from grains_ref.models import HuggingFaceModel

pytestmark = pytest.mark.cpu
pytest.importorskip("starlette", reason="needs pip install 'grains-ref[serve]'")
pytest.importorskip("uvicorn", reason="needs pip install 'grains-ref[serve]'")

from clients import LAM, one, some_vectors  # noqa: E402

from grains_ref.export.serving.asked import NEUTRAL, WITHOUT_EFFECT, Limits  # noqa: E402
from grains_ref.export.serving.served import Served, ServedVectors  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
REQUESTS = re.findall(r"^POST (/v1/\S+)\n\n```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_every_request_of_the_page_is_answered(llama: HuggingFaceModel) -> None:
    served = Served(llama, {"calm": ServedVectors(some_vectors(llama, 0), LAM, (0, 1, 2))}, Limits())
    try:
        answers = [one(served, json.loads(body.replace("MODEL", served.name)), path) for path, body in REQUESTS]
    finally:
        served.close()
    assert [answer.status for answer in answers] == [200, 200, 200]
    steered, scored, chat = answers
    assert len(steered.json["choices"][0]["logprobs"]["tokens"]) == 8
    assert [choice["text"].startswith("The moon is made of") for choice in scored.json["choices"]] == [True, True]
    assert chat.parts[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_client_of_the_page_sends_the_request_of_the_page() -> None:
    (client,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "OpenAI(" in code]
    calls = [node for node in ast.walk(ast.parse(client)) if isinstance(node, ast.Call)]
    (create,) = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "create"]
    fields = {keyword.arg for keyword in create.keywords} - {"extra_body"} | {"steering", "logprobs"}
    assert fields == set(json.loads(REQUESTS[0][1]))


def test_the_page_names_the_limits_that_hold() -> None:
    limits = Limits()
    for text in (f"once ({limits.rows})", f"({limits.waiting:,}; then 429)", f"({limits.new_tokens:,})", "(4 MiB)"):
        assert text in PAGE.replace("\n", " ")
    assert limits.body == 4 << 20
    for name in ("n", "best_of", "logit_bias", "tools", "response_format"):
        assert name in NEUTRAL
    for name in WITHOUT_EFFECT[:4]:
        assert f"`{name}`" in PAGE
