"""Registers the marker of `test_port`, which also runs where grains_ref is installed and its checkout is not."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Known also to --strict-markers."""
    config.addinivalue_line("markers", "cpu: fast correctness checks, no GPU, no download")
