"""How the suite runs; the fixtures are in shared.py."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# What is imported stays: to look for garbage in it takes a quarter of the time until the first test.
gc.disable()
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it in its workers, and rich would take it for the screen's width
sys.path.insert(0, str(Path(__file__).parent))  # tests import toys.py, whatever pytest's import mode

ON_EVERY_CORE = ("cpu", "thorough", "not gpu")  # these values of `-m` need no GPU


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """`pytest -m cpu` uses every core where pytest-xdist is installed; full-size models share one GPU and do not."""
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    if config.option.markexpr in ON_EVERY_CORE and config.option.numprocesses is None and not config.option.usepdb:
        config.option.numprocesses, config.option.dist = os.cpu_count(), "loadfile"
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the workers inherit these; BLAS threads only compete
            os.environ.setdefault(name, "1")
        for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):  # glibc: keep freed memory, no page faults
            os.environ.setdefault(name, str(1 << 28))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker takes the whole of tests/conformance, where answers are remembered from file to file."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class FilesAndOneFolder(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "conformance" if Path(file).parent.name == "conformance" else file

    return FilesAndOneFolder(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Where pytest-xdist only hands out tests, nothing that they need is imported."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("shared")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`pytest -m cpu` leaves out what is marked `thorough`; `pytest -m "not gpu"` runs both."""
    if config.option.markexpr != "cpu":
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


def pytest_collection_finish() -> None:
    """Garbage is collected again, but no longer among all that was imported."""
    gc.freeze()
    gc.enable()
