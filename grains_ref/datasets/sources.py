"""Rows of a dataset from the hub or from a local folder, each column checked before anything is built of it.

A local folder has the hub's layout, flat or as downloaded, in parquet, JSONL or JSON::

    FOLDER/CONFIG/SPLIT-00000-of-00001.parquet     FOLDER/CONFIG/SPLIT/0000.parquet     FOLDER/SPLIT.jsonl

Both kinds of source go through the `datasets` library (`pip install "grains-ref[eval]"`), which is imported only here
and only when rows are read.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from grains_ref.data import RowError, Where
from grains_ref.data.images import PictureError
from grains_ref.datasets.picture_cache import CACHE, keep_picture
from grains_ref.datasets.records import DatasetError, Row, check_seen
from grains_ref.datasets.schema import PICTURE, TEXT, Schema, check_columns, check_value
from grains_ref.files import MAX_DEPTH, json_depth

Source: TypeAlias = str | Path

CONVERTED = "refs/convert/parquet"  # the hub's own conversion of a repository that holds a script instead of data
SUFFIXES = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_MISSING_LIBRARY = 'datasets are read by the library `datasets` (4 or newer): pip install "grains-ref[eval]"'


@dataclass(frozen=True)
class Repository:
    """A repository of the hub, and which of its files are read.

    Attributes:
        id: its name there.
        old_ids: names that it had before; each is taken for it.
        include: patterns of the files that are read, as `hf download --include` takes them; () for all.
        revision: the branch with the data, where it is not the main one.
        folder: of a dataset with several repositories, the folder that this one is downloaded to.
        needs_token: whether the hub gives it to nobody without one.
    """

    id: str
    old_ids: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    revision: str = ""
    folder: str = ""
    needs_token: bool = False

    def named(self, source: Source) -> Repository:
        """What a hub id stands for: "" and old ids for this repository, any other id for a copy of it elsewhere."""
        hub_id = str(source)
        if hub_id in ("", self.id, *self.old_ids):
            return self
        return Repository(hub_id, include=self.include)

    def download(self, folder: str = "FOLDER") -> str:
        """The command that downloads the files that are read, and no others."""
        place = f"{folder}/{self.folder}" if self.folder else folder
        words = ["hf download", self.id, "--repo-type dataset", f"--local-dir {place}"]
        words += [f'--include "{pattern}"' for pattern in self.include]
        if self.revision:
            words.append(f"--revision {self.revision}")
        return " ".join(words)

    def within(self, folder: Path, siblings: Iterable[Repository]) -> Path:
        """Where it lies in a dataset's folder: in its own, or in the folder itself if that holds no sibling's."""
        holds_several = any(other.folder and (folder / other.folder).is_dir() for other in (self, *siblings))
        return folder / self.folder if holds_several else folder


def load_rows(
    source: Source, repository: Repository, *, config: str, split: str, schema: Schema, pictures: Path = CACHE
) -> tuple[Row, ...]:
    """Read one split, check every column's type and every value, and give the rows in their order.

    Args:
        source: a file or folder if there is one of that name, a hub id otherwise; "" for the repository.
        repository: where the dataset lies on the hub.
        config: the configuration, as the hub names it ("" where there is only one).
        split: the split; a single file is taken to be the split that is asked for.
        schema: the columns.
        pictures: where pictures that come as bytes are kept.

    Raises:
        DatasetError: the source cannot be read (not found, gated, a script, no such split, empty, the library is
            missing), or a column is missing or of another type.
        RowError: a value is missing, a label unknown, or a picture not there.
    """
    if is_local(source):
        path = Path(source)
        files = [path] if path.is_file() else local_files(path, config=config, split=split)
        name = str(path) if path.is_file() else _place(path, config, split)
        with tempfile.TemporaryDirectory() as scratch:
            return _rows(_read_files(files, scratch), name, files[0].parent, split, schema, pictures)
    repository = repository.named(source)
    check_hub_id(repository.id)
    name = _place(repository.id, config, split)
    return _rows(_read_hub(repository, config, split), name, Path.cwd(), split, schema, pictures)


def is_local(source: Source) -> bool:
    """Whether a source is a file or folder that is there."""
    return os.path.exists(source)  # False for "", and for a name that no disk takes


def _place(source: Source, config: str, split: str) -> str:
    """How messages name a split: "cais/mmlu/all/test"."""
    return f"{source}/{config}/{split}" if config else f"{source}/{split}"


def local_files(folder: Path, *, config: str, split: str) -> list[Path]:
    """The files of one split in a folder, in order.

    Raises:
        DatasetError: none, or the same split in several formats.
    """
    data_files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    of_split = [path for path in data_files if _is_of_split(path, split)]
    in_config = [path for path in of_split if path.relative_to(folder).parts[0] == config]
    flat = [path for path in of_split if path.parent == folder]
    files = in_config or flat
    if not files and not config:
        files = of_split
    if not files:
        listed = ", ".join(str(path.relative_to(folder)) for path in data_files[:8])
        layout = f"{config}/{split}-*.parquet" if config else f"{split}-*.parquet"
        wanted = f"split {split!r} of {config!r}" if config else f"split {split!r}"
        problem = f"no files of {wanted}; expected {layout} or {split}.jsonl"
        holds = listed or "no parquet, JSONL or JSON file at all"
        raise DatasetError(f"{folder}: {problem}. The folder holds: {holds}.")
    if len({path.suffix for path in files}) > 1 or len({path.parent for path in files}) > 1:
        several = ", ".join(str(path.relative_to(folder)) for path in files[:4])
        raise DatasetError(f"{folder}: split {split!r} is there more than once ({several}); keep one copy.")
    return files


def _is_of_split(path: Path, split: str) -> bool:
    return path.stem == split or path.stem.startswith(f"{split}-") or path.parent.name == split


def check_hub_id(source: str) -> None:
    """Refuse what is neither a path that exists nor the form of a hub id.

    Raises:
        DatasetError: it looks like a path, and nothing is there.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", source) or Path(source).suffix in SUFFIXES:
        raise DatasetError(f"{source}: no such file or folder (looked from {Path.cwd()})")


def library() -> Any:
    """The `datasets` library.

    Raises:
        DatasetError: it is not installed, or too old.
    """
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(f"{_MISSING_LIBRARY} ({error})") from error
    if not hasattr(datasets, "List"):  # older ones cannot read the feature type with which FaithEval was written
        raise DatasetError(f"{_MISSING_LIBRARY}; found {datasets.__version__}")
    return datasets


# ------------------------------------------------------------------------------------- reading
def _read_files(files: Sequence[Path], scratch: str) -> Any:
    for path in files:
        if not path.stat().st_size:
            raise DatasetError(f"{path}: is empty (0 bytes)")
        with path.open("rb") as file:
            start = file.read(40)
        if start.startswith(b"version https://git-lfs"):
            raise DatasetError(f"{path}: is a Git LFS pointer; fetch the file itself with: git lfs pull")
        if SUFFIXES[path.suffix] == "json":
            _check_depth(path)
    datasets = library()
    try:
        with _quiet(datasets):
            # Not `load_dataset`: it tells the hub of every file that is read, and waits for the answer.
            read = datasets.Dataset.from_json if SUFFIXES[files[0].suffix] == "json" else datasets.Dataset.from_parquet
            return read([str(path) for path in files], cache_dir=scratch)
    except Exception as error:  # every format has its own errors
        if "corresponds to no data" in str(error):
            raise DatasetError(f"{files[0]}: the split is empty") from error
        raise DatasetError(f"{files[0]}: cannot be read as {files[0].suffix[1:]}: {_root(error)}") from error


def _check_depth(path: Path) -> None:
    """Refuse JSON nested deeper than any dataset's: the library's parser ends the whole process over it."""
    with path.open(encoding="utf-8", errors="replace") as file:
        texts = file if path.suffix == ".jsonl" else [file.read()]
        for text in texts:
            n_brackets = text.count("[") + text.count("{")  # few: no need to look closer
            if n_brackets > MAX_DEPTH and json_depth(text) > MAX_DEPTH:
                raise DatasetError(f"{path}: JSON nested deeper than {MAX_DEPTH} levels, as no dataset is")


def _read_hub(repository: Repository, config: str, split: str) -> Any:
    datasets = library()
    try:
        return datasets.load_dataset(repository.id, config or None, split=split, revision=repository.revision or None)
    except Exception as error:  # the library, the hub's client and the network each have their own
        raise DatasetError(_explain(error, repository, split)) from error


def _explain(error: BaseException, repository: Repository, split: str) -> str:
    """Why the hub did not give a dataset, and the next step."""
    chain = list(_chain(error))
    names = {type(cause).__name__ for cause in chain}
    text = " ".join(str(cause) for cause in chain)
    codes = {getattr(getattr(cause, "response", None), "status_code", None) for cause in chain}
    hub_id = repository.id
    if "scripts are no longer supported" in text:
        advice = f"Download its conversion and give that folder: {replace(repository, revision=CONVERTED).download()}"
        return f"{hub_id} holds a loading script, which the `datasets` library no longer runs. {advice}"
    if "GatedRepoError" in names or "gated" in text or codes & {401, 403}:
        advice = f"Accept its terms at https://huggingface.co/datasets/{hub_id}, then log in: hf auth login"
        return f"{hub_id} is gated, private or misspelt: the hub gives it to nobody without a token. {advice}"
    if "DatasetNotFoundError" in names or "RepositoryNotFoundError" in names or 404 in codes:
        return f"{hub_id}: neither a folder here nor a dataset on the hub; is the name right?"
    if isinstance(error, ConnectionError) or "Couldn't reach" in text or "OfflineModeIsEnabled" in text:
        advice = f"On a machine with a network run `{repository.download()}`, and give FOLDER as the source."
        return f"{hub_id}: the hub cannot be reached, and no copy is on this machine. {advice}"
    if "Unknown split" in text or "BuilderConfig" in text:
        return f"{hub_id}: no split {split!r} there: {_root(error)}"
    return f"{hub_id} cannot be read: {_root(error)}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _root(error: BaseException) -> str:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    return f"{type(root).__name__}: {root}" if str(root) else type(root).__name__


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    was_off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not was_off:
            datasets.enable_progress_bars()


# ------------------------------------------------------------------------------------- building
def _rows(data: Any, name: str, folder: Path, split: str, schema: Schema, pictures: Path) -> tuple[Row, ...]:
    columns = check_columns(data.features, name, schema)
    if not len(data):
        raise DatasetError(f"{name}: the split is empty")
    image = library().Image
    data = data.select_columns(list(columns))
    for column, kind in columns.items():
        if kind == PICTURE and isinstance(data.features[column], image):
            data = data.cast_column(column, image(decode=False))
    rows = []
    for number, values in enumerate(_decoded(data, name), start=1):
        row = Row(id=f"{split}-{number:06d}", where=Where(name, number), fields=values)
        for column, kind in columns.items():
            value = values[column]
            if value is None and column in schema.optional:
                continue
            check_value(row, value, kind, column)
            if column in schema.visible and kind == TEXT:
                check_seen(row, value, column)
            if kind == PICTURE:
                values[column] = _picture(row, column, pictures, folder)
        rows.append(row)
    return _named(rows, schema.id_column) if schema.id_column else tuple(rows)


def _decoded(data: Any, name: str) -> Iterator[dict[str, Any]]:
    """The rows one by one: what is not UTF-8 shows only when its row is looked at."""
    for i in range(len(data)):
        try:
            values = data[i]
        except (UnicodeDecodeError, OverflowError) as error:
            raise RowError(name, i + 1, "", f"cannot be decoded ({error}); download the file again.") from error
        yield values


def _picture(row: Row, column: str, pictures: Path, folder: Path) -> Path:
    try:
        return keep_picture(row[column], cache=pictures, folder=folder)
    except PictureError as error:
        row.fail(column, str(error))


def _named(rows: Sequence[Row], column: str) -> tuple[Row, ...]:
    """Rows named by a column; where a name comes again, "_2", "_3", ... is put behind it, so that ids are unique."""
    repeats: Counter[str] = Counter()
    used: set[str] = set()
    named = []
    for row in rows:
        name = row[column]
        while name in used:
            repeats[row[column]] += 1
            name = f"{row[column]}_{repeats[row[column]] + 1}"
        used.add(name)
        named.append(replace(row, id=name))
    return tuple(named)
