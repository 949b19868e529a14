"""Rows of a dataset from the hub or from a local folder, each column checked before anything is built of it.

A local folder has the hub's layout, flat or as downloaded, in parquet, JSONL or JSON::

    FOLDER/CONFIG/SPLIT-00000-of-00001.parquet     FOLDER/CONFIG/SPLIT/0000.parquet     FOLDER/SPLIT.jsonl

Both kinds of source go through the `datasets` library (`pip install "grains-ref[eval]"`), which is imported only here
and only when rows are read.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from grains_ref.datasets.pictures import CACHE, keep_picture
from grains_ref.datasets.records import DatasetError, Row
from grains_ref.datasets.schema import PICTURE, Schema, check_columns, check_value
from grains_ref.images import PictureError

Source: TypeAlias = str | Path

MOVED = {  # ids that have a new home on the hub
    "truthful_qa": "truthfulqa/truthful_qa",
    "skg/toxigen-data": "toxigen/toxigen-data",
    "hendrycks/test": "cais/mmlu",
    "ai2_arc": "allenai/ai2_arc",
}
CONVERTED = "refs/convert/parquet"  # the hub's own conversion of a repository that holds a script instead of data
SCRIPTS = ("EleutherAI/truthful_qa_binary", "EleutherAI/truthful_qa_mc")
SUFFIXES = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_MISSING_LIBRARY = 'datasets are read by the library `datasets` (4 or newer): pip install "grains-ref[eval]"'


def load_rows(source: Source, *, config: str, split: str, schema: Schema, pictures: Path = CACHE) -> tuple[Row, ...]:
    """Read one split, check every column's type and every value, and give the rows in their order.

    Args:
        source: a file or folder if there is one of that name, a hub id otherwise.
        config: the configuration, as the hub names it ("" where there is only one).
        split: the split; a single file is taken to be the split that is asked for.
        schema: the columns.
        pictures: where pictures that come as bytes are kept.

    Raises:
        DatasetError: the source cannot be read (not found, gated, a script, no such split, empty, the library is
            missing), or a column is missing or of another type.
        RowError: a value is missing, a label unknown, or a picture not there.
    """
    path = Path(source)
    if path.exists():
        files = [path] if path.is_file() else local_files(path, config=config, split=split)
        name = str(path) if path.is_file() else "/".join([str(path), *filter(None, [config]), split])
        with tempfile.TemporaryDirectory() as scratch:
            return _rows(_read_files(files, scratch), name, files[0].parent, split, schema, pictures)
    check_hub_id(str(source))
    name = "/".join([str(source), *filter(None, [config]), split])
    return _rows(_read_hub(str(source), config, split), name, Path.cwd(), split, schema, pictures)


def local_files(folder: Path, *, config: str, split: str) -> list[Path]:
    """The files of one split in a folder, in order.

    Raises:
        DatasetError: none, or the same split in several formats.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    of_split = [p for p in found if p.stem == split or p.stem.startswith(f"{split}-") or p.parent.name == split]
    in_config = [p for p in of_split if config == p.relative_to(folder).parts[0]]
    flat = [p for p in of_split if p.parent == folder]
    files = in_config or flat or ([] if config else of_split)
    if not files:
        seen = ", ".join(str(p.relative_to(folder)) for p in found[:8]) or "no parquet, JSONL or JSON file at all"
        layout = "/".join(filter(None, [config, f"{split}-*.parquet"]))
        problem = (
            f"no files of split {split!r}{f' of {config!r}' if config else ''}; expected {layout} or {split}.jsonl"
        )
        raise DatasetError(f"{folder}: {problem}. The folder holds: {seen}.")
    if len({p.suffix for p in files}) > 1 or len({p.parent for p in files}) > 1:
        several = ", ".join(str(p.relative_to(folder)) for p in files[:4])
        raise DatasetError(f"{folder}: split {split!r} is there more than once ({several}); keep one copy.")
    return files


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
        start = path.read_bytes()[:40] if path.stat().st_size < 1000 else b""
        if not path.stat().st_size or start.startswith(b"version https://git-lfs"):
            problem = (
                "is a Git LFS pointer; fetch the file itself with: git lfs pull" if start else "is empty (0 bytes)"
            )
            raise DatasetError(f"{path}: {problem}")
    datasets = library()
    try:
        with _quiet(datasets):
            return datasets.load_dataset(
                SUFFIXES[files[0].suffix], data_files={"rows": [str(p) for p in files]}, split="rows", cache_dir=scratch
            )
    except Exception as error:  # every format has its own errors
        if "corresponds to no data" in str(error):
            raise DatasetError(f"{files[0]}: the split is empty") from error
        raise DatasetError(f"{files[0]}: cannot be read as {files[0].suffix[1:]}: {_root(error)}") from error


def _read_hub(hub_id: str, config: str, split: str) -> Any:
    datasets = library()
    hub_id = MOVED.get(hub_id, hub_id)
    if hub_id == "Shengcao1006/MMHal-Bench":
        raise DatasetError(
            f"{hub_id} is a script with a zip file, which no library loads any more. Download test_data.zip from "
            f"https://huggingface.co/datasets/{hub_id}, unpack it, and give the folder with response_template.json."
        )
    revision = CONVERTED if hub_id in SCRIPTS else None
    try:
        return datasets.load_dataset(hub_id, config or None, split=split, revision=revision)
    except Exception as error:  # the library, the hub's client and the network each have their own
        raise DatasetError(_explain(error, hub_id, split)) from error


def _explain(error: BaseException, hub_id: str, split: str) -> str:
    """Why the hub did not give a dataset, and the next step."""
    chain = list(_chain(error))
    names = {type(one).__name__ for one in chain}
    text = " ".join(str(one) for one in chain)
    codes = {getattr(getattr(one, "response", None), "status_code", None) for one in chain}
    download = f"hf download {hub_id} --repo-type dataset --local-dir FOLDER"
    if "scripts are no longer supported" in text:
        advice = f"Download its conversion and give that folder: {download} --revision {CONVERTED}"
        return f"{hub_id} holds a loading script, which the `datasets` library no longer runs. {advice}"
    if "GatedRepoError" in names or "gated" in text or codes & {401, 403}:
        advice = f"Accept its terms at https://huggingface.co/datasets/{hub_id}, then log in: hf auth login"
        return f"{hub_id} is gated, private or misspelt: the hub gives it to nobody without a token. {advice}"
    if "DatasetNotFoundError" in names or "RepositoryNotFoundError" in names or 404 in codes:
        return f"{hub_id}: neither a folder here nor a dataset on the hub; is the name right?"
    if isinstance(error, ConnectionError) or "Couldn't reach" in text or "OfflineModeIsEnabled" in text:
        advice = f"On a machine with a network run `{download}`, and give that folder as the source."
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
    for number, values in enumerate(data, start=1):
        row = Row(id=f"{split}-{number:06d}", where=f"{name}:{number}", fields=values)
        for column, kind in columns.items():
            value = values[column]
            if value is None and column in schema.optional:
                continue
            check_value(row, value, kind, column)
            if kind == PICTURE:
                values[column] = _picture(row, column, pictures, folder)
        rows.append(row)
    return _named(rows, schema.id_column) if schema.id_column else tuple(rows)


def _picture(row: Row, column: str, pictures: Path, folder: Path) -> Path:
    try:
        return keep_picture(row[column], cache=pictures, folder=folder)
    except PictureError as error:
        row.fail(column, str(error))


def _named(rows: Sequence[Row], column: str) -> tuple[Row, ...]:
    """Rows named by a column; where a name comes again, "_2", "_3", ... is put behind it, so that ids are unique."""
    seen: Counter[str] = Counter()
    named = []
    for row in rows:
        name = row[column]
        seen[name] += 1
        named.append(Row(f"{name}_{seen[name]}" if seen[name] > 1 else name, row.where, row.fields))
    return tuple(named)
