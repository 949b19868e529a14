"""What each dataset is, where it comes from, and whether it can be read on this machine."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from grains_ref.datasets import faitheval, mmhal, mmlu, mmmu, spa_vl, toxigen, truthfulqa
from grains_ref.datasets.records import DatasetError
from grains_ref.datasets.source import CONVERTED, MOVED, SCRIPTS, Source, check_hub_id, local_files


@dataclass(frozen=True)
class Part:
    """One split of one configuration of one repository, and how many rows it has.

    `needed` is off for what is read, but is in no table of the paper.
    """

    hub_id: str
    config: str
    split: str
    rows: int
    needed: bool = True


@dataclass(frozen=True)
class About:
    """A dataset of the paper; `used_for` are its tables and figures there.

    `needs_token` says that the hub gives it to nobody without one, `by_hand` what has to be fetched outside the hub's
    client (empty where nothing has).
    """

    name: str
    title: str
    used_for: str
    parts: tuple[Part, ...]
    licence: str
    pictures: bool
    needs_token: bool = False
    by_hand: str = ""

    @property
    def commands(self) -> tuple[str, ...]:
        """Shell commands that fetch it into FOLDER; the folder is then the reader's source."""
        if self.by_hand:
            return ()
        ids = dict.fromkeys(part.hub_id for part in self.parts)
        several = len(ids) > 1
        lines = ["hf auth login"] if self.needs_token else []
        for hub_id in ids:
            folder = f"FOLDER/{self.folder_of(hub_id)}" if several and self.folder_of(hub_id) else "FOLDER"
            revision = f" --revision {CONVERTED}" if hub_id in SCRIPTS else ""
            lines.append(f"hf download {hub_id} --repo-type dataset --local-dir {folder}{revision}")
        return tuple(lines)

    def folder_of(self, hub_id: str) -> str:
        """The folder of one repository beneath the dataset's folder, where there are several."""
        tasks = {known: task for task, known in faitheval.HUB_IDS.items()}
        return tasks.get(hub_id, "")

    def __str__(self) -> str:
        lines = [f"{self.title} ({self.name}), for {self.used_for}"]
        for part in self.parts:
            config = f"{part.config}/" if part.config else ""
            lines.append(
                f"  {part.hub_id}  {config}{part.split}  {part.rows:,} rows{'' if part.needed else ', in no table'}"
            )
        access = "needs a token: accept the terms on its page, then log in" if self.needs_token else "open"
        lines.append(f"  licence: {self.licence}; access: {access}")
        lines += [f"  get it: {command}" for command in self.commands or (self.by_hand,)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Availability:
    """Whether a dataset can be read, and why not or from where."""

    name: str
    is_available: bool
    why: str


_FAITHEVAL_ROWS = {"counterfactual": 1000, "unanswerable": 2492, "inconsistent": 1500}
DATASETS = (
    About(
        name="truthfulqa",
        title="TruthfulQA",
        used_for="tables 1, 4, 6 and figures 3, 5, 6",
        parts=(
            Part(truthfulqa.HUB_ID, "multiple_choice", "validation", 817),
            Part(truthfulqa.HUB_ID, "generation", "validation", 817),
        ),
        licence="Apache-2.0",
        pictures=False,
    ),
    About(
        name="toxigen",
        title="ToxiGen, annotated",
        used_for="tables 1 and 6",
        parts=(Part(toxigen.HUB_ID, "annotated", "train", 8960), Part(toxigen.HUB_ID, "annotated", "test", 940)),
        licence="data CDLA-Permissive-2.0, code MIT",
        pictures=False,
        needs_token=True,
    ),
    About(
        name="faitheval",
        title="FaithEval",
        used_for="tables 1 and 6",
        parts=tuple(
            Part(faitheval.HUB_IDS[task], "", "test", rows, needed=task == "counterfactual")
            for task, rows in _FAITHEVAL_ROWS.items()
        ),
        licence="none given on the hub; repository Apache-2.0 with a note 'for research purposes only'",
        pictures=False,
    ),
    About(
        name="spa_vl",
        title="SPA-VL, validation",
        used_for="tables 3, 5, 7, 8",
        parts=(Part(spa_vl.HUB_ID, "validation", "validation", 7000),),
        licence="CC-BY-4.0 (some pictures are disturbing)",
        pictures=True,
    ),
    About(
        name="mmhal",
        title="MMHal-Bench, with VTI's 100 descriptions for steering",
        used_for="table 2",
        parts=(Part(mmhal.HUB_ID, "", "test", 96), Part("github.com/shengliu66/VTI", "", mmhal.VTI_FILE, 100)),
        licence="Apache-2.0, pictures from Flickr; VTI's file has no licence; COCO's own terms for its pictures",
        pictures=True,
        by_hand=(
            f"unpack test_data.zip of https://huggingface.co/datasets/{mmhal.HUB_ID} into FOLDER ({mmhal.TEMPLATE}, "
            f"{mmhal.IMAGES}/); add {mmhal.VTI_FILE} of github.com/shengliu66/VTI (experiments/data/) and, as "
            f"{mmhal.COCO}/, the pictures of COCO 2014 (http://cocodataset.org) that it names"
        ),
    ),
    About(
        name="mmlu",
        title="MMLU",
        used_for="table 4",
        parts=(Part(mmlu.HUB_ID, "all", "test", 14042), Part(mmlu.HUB_ID, "all", "dev", 285)),
        licence="MIT",
        pictures=False,
    ),
    About(
        name="mmmu",
        title="MMMU",
        used_for="table 5",
        parts=(
            Part(mmmu.HUB_ID, "30 subjects", "validation", 900),
            Part(mmmu.HUB_ID, "30 subjects", "dev", 150),
        ),
        licence="Apache-2.0",
        pictures=True,
    ),
)
NAMES = tuple(about.name for about in DATASETS)


def describe(name: str) -> About:
    """What a dataset is and how to get it.

    Raises:
        DatasetError: there is no reader of that name.
    """
    for about in DATASETS:
        if about.name == name:
            return about
    raise DatasetError(f"there is no reader named {name!r}; there are {', '.join(NAMES)}")


def fixture(name: str) -> Path:
    """The folder of the miniature with invented content, in the layout and columns of the real dataset."""
    return Path(str(resources.files("grains_ref.fixtures"))) / "datasets" / describe(name).name


def available(name: str, source: Source = "") -> Availability:
    """Whether a dataset can be read from here; looks for files and downloads nothing.

    Args:
        name: the dataset.
        source: a folder or a hub id; "" is the dataset's own place on the hub, of which a copy may be in the cache.
    """
    about = describe(name)
    if importlib.util.find_spec("datasets") is None:
        return Availability(name, False, 'the `datasets` library is missing: pip install "grains-ref[eval]"')
    if source and Path(source).exists():
        lacks = _lacks(about, Path(source))
        return Availability(name, not lacks, lacks or f"read from {source}")
    if source:
        try:
            check_hub_id(str(source))
        except DatasetError as error:
            return Availability(name, False, str(error))
    how = "; ".join(about.commands) or about.by_hand
    absent = (
        []
        if about.by_hand
        else [part for part in about.parts if part.needed and not _is_cached(about, part, str(source))]
    )
    if absent or about.by_hand:
        ids = str(source) or ", ".join(dict.fromkeys(part.hub_id for part in absent or about.parts))
        return Availability(name, False, f"not on this machine: {ids}. Get it: {how}")
    return Availability(name, True, "in the hub's cache on this machine")


def _configs(about: About, part: Part) -> tuple[str, ...]:
    return mmmu.SUBJECTS if about.name == "mmmu" else (part.config,)


def _is_cached(about: About, part: Part, source: str) -> bool:
    """Whether the `datasets` library has all configurations of a part in its cache."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, _, repository = MOVED.get(source or part.hub_id, source or part.hub_id).rpartition("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "___".join(
        filter(None, [owner, camelcase_to_snakecase(repository)])
    )
    return all((folder / (config or "default")).is_dir() for config in _configs(about, part))


def _lacks(about: About, folder: Path) -> str:
    """What a local folder lacks, or ""."""
    if about.name == "mmhal":
        names = [
            name for name in (mmhal.TEMPLATE, mmhal.IMAGES, mmhal.VTI_FILE, mmhal.COCO) if not (folder / name).exists()
        ]
        return f"{folder} lacks {', '.join(names)}" if names else ""
    if folder.is_file():
        return ""
    for part in filter(lambda part: part.needed, about.parts):
        below = faitheval.folder_of(folder, about.folder_of(part.hub_id)) if about.name == "faitheval" else folder
        for config in _configs(about, part):
            try:
                local_files(below, config=config, split=part.split)
            except DatasetError as error:
                return str(error)
    return ""


def rehearse(name: str, source: Source = "") -> dict[str, int]:
    """Read a dataset whole and make every record it can give; how many there are of each kind.

    Args:
        name: the dataset.
        source: where it is; "" is the miniature, which is there on every machine.

    Raises:
        DatasetError, RowError: the first thing that is wrong.
    """
    describe(name)  # there is no reader of another name
    subjects = mmmu.SUBJECTS if source else mmmu_fixture_subjects()
    with tempfile.TemporaryDirectory() as scratch:
        records = _all_records(name, Path(source or fixture(name)), subjects, Path(scratch))
    return {form: len(made) for form, made in records.items()}


def _all_records(name: str, folder: Path, subjects: tuple[str, ...], pictures: Path) -> dict[str, list[Any]]:
    records: dict[str, list[Any]] = {}
    if name == "truthfulqa":
        rows = truthfulqa.read(folder)
        records["pairs"] = [truthfulqa.pair(row) for row in rows]
        for form in ("mc1", "mc2", "binary"):
            records[form] = [truthfulqa.multiple_choice(row, form=form) for row in rows]
        records["generation"] = [truthfulqa.generation(row) for row in truthfulqa.read(folder, config="generation")]
    elif name == "toxigen":
        records["pairs"] = [toxigen.pair(row) for row in toxigen.read(folder, split="train")]
        records["multiple_choice"] = [toxigen.multiple_choice(row) for row in toxigen.read(folder)]
    elif name == "faitheval":
        for task in faitheval.HUB_IDS:
            rows = faitheval.read(folder, task=task)
            records[f"{task}_pairs"] = [faitheval.pair(row) for row in rows]
            records[f"{task}_generation"] = [faitheval.generation(row) for row in rows]
    elif name == "spa_vl":
        rows = spa_vl.read(folder, pictures=pictures)
        records["pairs"] = [spa_vl.pair(row) for row in rows]
        records["generation"] = [spa_vl.generation(row) for row in rows]
    elif name == "mmhal":
        vti = mmhal.read_vti(folder / mmhal.VTI_FILE, coco=folder / mmhal.COCO)
        records["pairs"] = [mmhal.pair(row) for row in vti]
        records["generation"] = [mmhal.generation(row) for row in mmhal.read(folder)]
    elif name == "mmlu":
        dev = mmlu.read(folder, split="dev")
        records["multiple_choice"] = [mmlu.multiple_choice(row, dev=dev) for row in mmlu.read(folder)]
    else:
        rows = mmmu.read(folder, subjects=subjects, pictures=pictures)
        closed = [row for row in rows if not mmmu.is_open(row)]
        records["multiple_choice"] = [mmmu.multiple_choice(row, max_pictures=mmmu.N_PICTURES) for row in closed]
        records["generation"] = [mmmu.generation(row) for row in rows]
    return records


def mmmu_fixture_subjects() -> tuple[str, ...]:
    """The subjects of which the miniature of MMMU has questions."""
    return tuple(subject for subject in mmmu.SUBJECTS if (fixture("mmmu") / subject).is_dir())
