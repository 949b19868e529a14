"""All datasets there are, by name, and whether each can be read on this machine.

A dataset registers itself: every module of this package with a `DATASET` is one.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from grains_ref.datasets.dataset import Dataset, PairOptions, PairRows, Part
from grains_ref.datasets.records import DatasetError
from grains_ref.datasets.sources import Source, check_hub_id, is_local, local_files


def _find_datasets() -> dict[str, Dataset]:
    package = importlib.import_module("grains_ref.datasets")
    datasets: dict[str, Dataset] = {}
    for module_info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{module_info.name}")
        if hasattr(module, "DATASET"):
            datasets[module_info.name] = module.DATASET
    return datasets


DATASETS = _find_datasets()
NAMES = tuple(DATASETS)


@dataclass(frozen=True)
class Availability:
    """Whether a dataset can be read, and why not or from where."""

    name: str
    is_available: bool
    why: str


def find(name: str) -> Dataset:
    """The dataset of a name.

    Raises:
        DatasetError: there is none.
    """
    if name not in DATASETS:
        raise DatasetError(f"there is no dataset named {name!r}; there are {', '.join(NAMES)}")
    return DATASETS[name]


def fixture(name: str) -> Path:
    """The folder of the miniature with invented content, in the layout and columns of the real dataset."""
    return Path(str(resources.files("grains_ref.fixtures"))) / "datasets" / find(name).name


def pair_rows(name: str, source: Source, options: PairOptions) -> PairRows:
    """A dataset's split, and what makes a preference pair of one of its examples.

    Raises:
        DatasetError: the dataset gives no pairs, has no such recipe or split, or cannot be read.
    """
    dataset = find(name)
    if dataset.pair_rows is None:
        with_pairs = [other.name for other in DATASETS.values() if other.pair_rows]
        raise DatasetError(f"no pairs are made of {name}; they are made of {', '.join(with_pairs)}")
    if options.recipe and options.recipe not in dataset.recipes:
        known = f"there are {', '.join(dataset.recipes)}" if dataset.recipes else "there is only one, without a name"
        raise DatasetError(f"{name} has no recipe {options.recipe!r}; {known}")
    return dataset.pair_rows(source, options)


def available(name: str, source: Source = "") -> Availability:
    """Whether a dataset can be read from here; looks for files and downloads nothing.

    Args:
        name: the dataset.
        source: a folder or a hub id; "" is the dataset's own place on the hub, of which a copy may be in the cache.
    """
    dataset = find(name)
    if importlib.util.find_spec("datasets") is None:
        return Availability(name, False, 'the `datasets` library is missing: pip install "grains-ref[eval]"')
    if is_local(source):
        problem = _lacks(dataset, Path(source))
        return Availability(name, not problem, problem or f"read from {source}")
    if source:
        try:
            check_hub_id(str(source))
        except DatasetError as error:
            return Availability(name, False, str(error))
    if dataset.by_hand:
        absent = list(dataset.parts)
    else:
        absent = [part for part in dataset.parts if part.needed and not _is_cached(part, source)]
    if not absent:
        return Availability(name, True, "in the hub's cache on this machine")
    ids = str(source) or ", ".join(dict.fromkeys(part.repository.id for part in absent))
    how = "; ".join(dataset.commands) or dataset.by_hand
    return Availability(name, False, f"not on this machine: {ids}. Get it: {how}")


def _is_cached(part: Part, source: Source) -> bool:
    """Whether the `datasets` library has all configurations of a part in its cache."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, _, repository = part.repository.named(source).id.rpartition("/")
    name = camelcase_to_snakecase(repository)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / (f"{owner}___{name}" if owner else name)
    return all((folder / (config or "default")).is_dir() for config in part.configs)


def _lacks(dataset: Dataset, folder: Path) -> str:
    """What a local folder lacks, or ""."""
    absent = [name for name in dataset.files if not (folder / name).exists()]
    if absent:
        return f"{folder} lacks {', '.join(absent)}"
    if folder.is_file() or dataset.by_hand:
        return ""
    for part in dataset.parts:
        if not part.needed:
            continue
        place = part.repository.within(folder, dataset.repositories)
        for config in part.configs:
            try:
                local_files(place, config=config, split=part.split)
            except DatasetError as error:
                return str(error)
    return ""


def rehearse(name: str, source: Source = "") -> dict[str, int]:
    """Read a dataset whole and make every record it can give; how many there are of each form.

    Args:
        name: the dataset.
        source: where it is; "" is the miniature, which is there on every machine.

    Raises:
        DatasetError, RowError: the first thing that is wrong.
    """
    dataset = find(name)
    if is_local(source):
        problem = _lacks(dataset, Path(source))
        if problem:
            raise DatasetError(problem)
    with tempfile.TemporaryDirectory() as pictures:
        records = dataset.records(source or fixture(name), Path(pictures))
    return {form: len(made) for form, made in records.items()}
