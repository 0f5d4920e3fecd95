"""What a folder of prepared rows says of itself, and how that differs from what a config says now.

The manifest is written last, so a folder that has one is whole. Everything in it is plain JSON; ``docs/prepared.md``
explains each field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from mixer.config.curriculum import Curriculum
from mixer.config.sources import SourceConfig
from mixer.errors import MalformedDataError, MissingDataError, PreparedMismatchError
from mixer.sources.files import READERS, find_files, is_url
from mixer.sources.local import gather

MANIFEST_VERSION = 1
MANIFEST = "prepared.json"
TOKENIZER = "tokenizer.json"
SOURCES = "sources"  # the folder with one folder per source, whose names are the user's
RECORD = "source.json"
WORK = ".unfinished"

# fields of a source that shape delivery alone, or say what is done about what cannot be read
NOT_OF_THE_ROWS = {
    "name",
    "on_exhausted",
    "on_failure",
    "on_bad_record",
    "max_bad_records",
    "tokens",
    "max_tokens",
    "max_epochs",
}

Split = Literal["train", "held_out"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Frozen):
    """One Arrow file: a header of ``offset`` bytes, ``rows`` rows without a gap, an end mark."""

    file: str
    rows: int
    offset: int
    size: int
    header_digest: str
    digest: str


class SplitManifest(_Frozen):
    """The rows of one source that are trained on, or those held out."""

    documents: int = 0
    rows: int = 0
    tokens: int = 0
    tail_tokens: int = 0  # at the end, fewer than fill a row; they are in no row
    shards: tuple[Shard, ...] = ()


class InputFile(_Frozen):
    """A file that a source was read from."""

    name: str
    size: int


class SourceManifest(_Frozen):
    """One source: what it was made from and what became of it."""

    definition: dict[str, Any]
    files: tuple[InputFile, ...] = ()
    revision: str | None = None
    train: SplitManifest
    held_out: SplitManifest = SplitManifest()


class SourceRecord(_Frozen):
    """What the folder of a source says of itself, until and after the manifest does."""

    settings: dict[str, Any]
    source: SourceManifest


class TokenizerManifest(_Frozen):
    """The tokenizer, whose file lies beside the manifest."""

    definition: dict[str, Any]
    fingerprint: str
    separator: str
    separator_id: int
    vocab_size: int


class Manifest(_Frozen):
    """All that is known of a folder of prepared rows."""

    version: int = MANIFEST_VERSION
    code_version: str
    dtype: Literal["uint8", "uint16", "uint32"]
    sequence_length: int
    holdout: float
    tokenizer: TokenizerManifest
    sources: dict[str, SourceManifest]

    @property
    def fingerprint(self) -> str:
        """Digest of the rows and of how they are read, hex [32]; neither place nor time is in it."""
        listing = [self.dtype, self.sequence_length, self.holdout, self.tokenizer.fingerprint]
        rows = {
            name: [[shard.digest for shard in split.shards] for split in (source.train, source.held_out)]
            for name, source in self.sources.items()
        }
        return digest_of([*listing, rows])


def digest_of(data: object) -> str:
    """Return the digest of plain data, hex [32]; the order of keys does not count."""
    return hashlib.blake2b(orjson.dumps(data, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a folder.

    Raises:
        MissingDataError: no such folder, or one in which no preparation has been finished.
        MalformedDataError: a manifest that cannot be read, or one of another version.
    """
    path = folder / MANIFEST
    try:
        data = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingDataError(f"prepared rows: {_absence(folder)}") from error
    except orjson.JSONDecodeError as error:
        raise MalformedDataError(f"{path}: not a manifest of prepared rows: {error}") from error
    version = data.get("version") if isinstance(data, dict) else None
    if version != MANIFEST_VERSION:
        raise MalformedDataError(
            f"{path}: manifest version {version!r}, but this curriculum-mixer reads version {MANIFEST_VERSION}; "
            "run `mixer prepare` again, or install the release that wrote it"
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MalformedDataError(
            f"{path}: not a manifest of prepared rows: {where}: {first['msg']}; run `mixer prepare` again"
        ) from error


def _absence(folder: Path) -> str:
    if not folder.is_dir():
        return f"no folder {folder}; make it with `mixer prepare CONFIG --out {folder}`"
    if (folder / WORK).is_dir():
        return f"{folder} is not finished; run `mixer prepare` again: it goes on where it stopped"
    return f"{folder} holds no {MANIFEST}, so it was not made by `mixer prepare`"


def source_definition(source: SourceConfig) -> dict[str, Any]:
    """Return the fields of a source that shape its rows, as plain data; those left at their default are left out."""
    return source.model_dump(mode="json", exclude=NOT_OF_THE_ROWS, exclude_defaults=True)


def tokenizer_definition(curriculum: Curriculum) -> dict[str, Any]:
    """Return what the config says of the tokenizer, as plain data."""
    return curriculum.tokenizer.model_dump(mode="json", exclude_defaults=True) if curriculum.tokenizer else {}


def input_files(source: SourceConfig, resolve: Callable[[str], Path]) -> tuple[InputFile, ...]:
    """Return the names and sizes of the files of this machine that a source is read from, in order; none for the hub's.

    Raises:
        MissingDataError: a pattern that matches nothing.
    """
    if source.local is not None:
        return _listing([gather(source.local)])
    if source.path is not None and source.path.startswith((".", "/", "~")):
        folder = resolve(source.path)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return tuple(InputFile(name=path.relative_to(folder).as_posix(), size=path.stat().st_size) for path in files)
    patterns = (source.data_files,) if isinstance(source.data_files, str) else source.data_files or ()
    if source.path is not None and source.path not in READERS:
        return ()  # of the hub
    return _listing(find_files(source.name, [pattern for pattern in patterns if not is_url(pattern)], resolve))


def _listing(files: Sequence[Path]) -> tuple[InputFile, ...]:
    return tuple(InputFile(name=file.name, size=file.stat().st_size) for file in files)


def check_against(manifest: Manifest, curriculum: Curriculum, tokenizer_fingerprint: str | None, place: Path) -> None:
    """Raise PreparedMismatchError naming everything in which the config differs from what the rows were made with."""
    found = [*_settings(manifest, curriculum, tokenizer_fingerprint)]
    for source in curriculum.read_sources:
        found += source_differences(source, manifest.sources.get(source.name), curriculum.resolve)
    if found:
        raise PreparedMismatchError(
            [*found, f"the rows in {place} are not those of this config; run `mixer prepare` again, or undo the change"]
        )


def _settings(manifest: Manifest, curriculum: Curriculum, tokenizer_fingerprint: str | None) -> Iterator[str]:
    pairs: list[tuple[str, object, object]] = [
        ("sequence_length", manifest.sequence_length, curriculum.sequence_length),
        ("holdout", manifest.holdout, curriculum.holdout),
    ]
    if curriculum.tokenizer is not None:
        was, now = manifest.tokenizer.definition, tokenizer_definition(curriculum)
        pairs.append(("tokenizer.separator", manifest.tokenizer.separator, curriculum.tokenizer.separator))
        pairs.append(("tokenizer.train_vocab_size", was.get("train_vocab_size"), now.get("train_vocab_size")))
        pairs.append(("tokenizer.kind", was.get("kind", "bpe"), now.get("kind", "bpe")))
    if tokenizer_fingerprint is not None:
        pairs.append(("the tokenizer's fingerprint", manifest.tokenizer.fingerprint, tokenizer_fingerprint))
    for what, was_, now_ in pairs:
        if was_ != now_:
            yield f"{what} is {_shown(now_)}, but the rows were prepared with {_shown(was_)}"
    if curriculum.vocab_size is not None and manifest.tokenizer.vocab_size > curriculum.vocab_size:
        yield f"vocab_size is {curriculum.vocab_size}, but the rows need {manifest.tokenizer.vocab_size}"


def source_differences(
    source: SourceConfig, prepared: SourceManifest | None, resolve: Callable[[str], Path]
) -> Iterator[str]:
    """Yield a sentence for each thing in which a source differs from what its rows were made from.

    Files that are all gone are no difference: the rows may have been copied to a machine that never had them.
    """
    if prepared is None:
        yield f"source {source.name} has not been prepared"
        return
    was, now = prepared.definition, source_definition(source)
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            yield (
                f"source {source.name}: {key} is {_shown(now.get(key))}, "
                f"but the rows were prepared with {_shown(was.get(key))}"
            )
    is_gathered = source.local is not None  # from whatever Python there is: another machine has other text
    if was == now and prepared.files and not is_gathered:
        files = files_still_there(source, resolve)
        if files:
            yield from file_differences(source.name, prepared.files, files)


def files_still_there(source: SourceConfig, resolve: Callable[[str], Path]) -> tuple[InputFile, ...]:
    """Return the files of a source as ``input_files`` does, or none if they are gone."""
    try:
        return input_files(source, resolve)
    except MissingDataError:
        return ()


def file_differences(name: str, was: Sequence[InputFile], now: Sequence[InputFile]) -> Iterator[str]:
    """Yield a sentence for each file that came, went or changed its size."""
    sizes, sizes_now = ({file.name: file.size for file in files} for files in (was, now))
    for file, size in sizes.items():
        if file not in sizes_now:
            yield f"source {name}: the file {file} is gone"
        elif sizes_now[file] != size:
            yield f"source {name}: the file {file} has {sizes_now[file]} bytes, but the rows were prepared from {size}"
    yield from (f"source {name}: the file {file} is new" for file in sizes_now if file not in sizes)
    if sizes == sizes_now and list(was) != list(now):
        yield f"source {name}: its files are in another order"


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)
