"""All sources of a curriculum to prepared rows: several at once, each in a process of its own, resumable after a kill.

A source that is finished stays; one that is not goes on where it was. The manifest appears last, so that the folder
cannot be read while a part of it is missing. Rows that would have to be replaced are not touched without ``force``:
a run that was trained on them could not be resumed.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from mixer.config.curriculum import Curriculum
from mixer.config.problems import suggestion
from mixer.config.sources import SourceConfig, check_folder
from mixer.errors import ConfigError, MixerError, PreparationError, PreparedMismatchError, UnknownSourceError
from mixer.sources.chat import chat_of, templates_digest
from mixer.sources.masks import masked_dtype
from mixer.sources.packing import smallest_dtype
from mixer.sources.prepared.manifest import (
    MANIFEST,
    RECORD,
    SOURCES,
    TOKENIZER,
    WORK,
    Manifest,
    SourceRecord,
    TokenizerManifest,
    file_differences,
    files_still_there,
    read_manifest,
    source_differences,
    tokenizer_definition,
)
from mixer.sources.prepared.writer import Done, RowFormat, SourcePreparation
from mixer.sources.tokenizer import TextTokenizer, read_tokenizer
from mixer.sources.tokenizer_training import load_tokenizer
from mixer.system.files import written_whole

if TYPE_CHECKING:
    from datasets import IterableDataset

SHARD_BYTES = 4 << 30
LOCK = ".lock"
ORPHAN_WAIT_S = 60  # for a worker whose parent was killed to notice

Report = Callable[[Done], None]


@dataclass(frozen=True)
class Outcome:
    """What a call of ``prepare`` did: the sources it made, those it found ready, and what is still missing."""

    made: tuple[str, ...]
    ready: tuple[str, ...]
    missing: tuple[str, ...]
    manifest: Manifest | None


@dataclass(frozen=True)
class _Task:
    """All that a worker needs for one source; plain enough to send to another process."""

    curriculum: Curriculum
    source: SourceConfig
    work: Path
    row_format: RowFormat
    separator: str


def prepare(
    curriculum: Curriculum,
    out: str | Path,
    *,
    jobs: int = 1,
    sources: Sequence[str] | None = None,
    force: bool = False,
    streams: Mapping[str, IterableDataset] | None = None,
    report: Report = lambda done: None,
    shard_bytes: int = SHARD_BYTES,
) -> Outcome:
    """Tokenise and pack every source once into ``out``, and return what was done.

    Sources that can be finished are finished and kept, whatever befalls others.

    Args:
        curriculum: the run.
        out: a folder; one that holds prepared rows is brought up to date.
        jobs: sources to read at once. More than one starts processes, which a script must allow for with
            ``if __name__ == "__main__"``.
        sources: prepare these alone; the manifest appears when all are there.
        force: replace rows that are not those of the config any more.
        streams: data sets by source name, for sources that the program passes; they are read in this process.
        report: called, in this process, with how far each source is.
        shard_bytes: largest file.

    Raises:
        PreparedMismatchError: finished rows that are not those of the config, without ``force``.
        PreparationError: rows that cannot be written, a worker that died, or another preparation in ``out``.
        ConfigError: ``out`` is a URL.
        SourceError, TokenizerError, UnknownSourceError: what cannot be read.
    """
    try:
        out = Path(check_folder(str(out)))
    except ValueError as error:
        raise ConfigError(f"prepare: {error}") from error
    for name in sources or ():
        if name not in curriculum.probed_names:
            raise UnknownSourceError(f"prepare: unknown source {name!r}{suggestion(name, curriculum.probed_names)}")
    if not curriculum.read_sources:
        raise ConfigError("prepare: every source is of token files, which are read as they are; there is nothing to do")
    chosen = [source for source in curriculum.read_sources if sources is None or source.name in sources]
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PreparationError(
            f"another `mixer prepare` is at work in {out}; wait for it, or name another folder"
        ) from error
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        preparation = _Preparation(curriculum, out, streams or {}, shard_bytes)
        return preparation.run(chosen, jobs=jobs, force=force, report=report)
    finally:
        lock.release()


def default_jobs() -> int:
    """Return how many sources to read at once on this machine: one for every 4 cores.

    The tokenizer uses every core for one source; a second process pays where parsing, on one core, cannot keep up with
    it. With 2 cores it only costs its start (benchmarks/README.md).
    """
    return max(1, (os.cpu_count() or 1) // 4)


class _Preparation:
    """One call of ``prepare``, with the folder's lock held."""

    def __init__(
        self, curriculum: Curriculum, out: Path, streams: Mapping[str, IterableDataset], shard_bytes: int
    ) -> None:
        self._curriculum = curriculum
        self._out = out
        self._streams = streams
        self._tokenizer = load_tokenizer(curriculum, streams)
        self._format = _row_format(curriculum, self._tokenizer, shard_bytes)

    def run(self, chosen: list[SourceConfig], *, jobs: int, force: bool, report: Report) -> Outcome:
        """Make what is missing and publish the whole."""
        wanted = [source for source in chosen if self._ready_folder(source) is None]
        outdated = [
            difference
            for source in wanted
            for difference in self._differences(source, _record(self._out / SOURCES / source.name))
        ]
        if outdated and not force:
            raise PreparedMismatchError(
                [
                    *outdated,
                    f"the rows in {self._out} are not those of this config; name another folder, undo the change, "
                    "or let --force replace the rows that differ",
                ]
            )
        self._make(wanted, jobs, report)
        missing = tuple(source.name for source in self._curriculum.read_sources if self._ready_folder(source) is None)
        made = tuple(source.name for source in wanted)
        ready = tuple(source.name for source in chosen if source not in wanted)
        return Outcome(made, ready, missing, None if missing else self._publish())

    def _differences(self, source: SourceConfig, record: SourceRecord | None) -> list[str]:
        """Return what makes finished rows of a source unfit; no rows are no difference."""
        if record is None:
            return []
        found = [
            f"source {source.name}: {what} is {now!r}, but the rows were prepared with {record.settings.get(what)!r}"
            for what, now in self._format.settings.items()
            if now != record.settings.get(what)
        ]
        found += source_differences(source, record.source, self._curriculum.resolve)
        if source.local is not None and not found:  # here, unlike in a run, this machine's text is asked for
            files = files_still_there(source, self._curriculum.resolve)
            found += file_differences(source.name, record.source.files, files)
        return found

    def _ready_folder(self, source: SourceConfig) -> Path | None:
        """Return the folder of the finished rows that fit the config, if there is one."""
        for folder in (self._out / WORK / SOURCES / source.name, self._out / SOURCES / source.name):
            record = _record(folder)
            if record is not None and not self._differences(source, record):
                return folder
        return None

    def _make(self, sources: list[SourceConfig], jobs: int, report: Report) -> None:
        work = self._out / WORK
        if sources:
            try:
                with written_whole(work / TOKENIZER) as file:
                    file.write(self._tokenizer.to_json())
            except OSError as error:
                raise _unwritable(work, error) from error
        tasks = [_Task(self._curriculum, source, work, self._format, self._tokenizer.separator) for source in sources]
        is_here = {
            task.source.name: jobs == 1 or len(tasks) == 1 or task.source.name in self._streams for task in tasks
        }
        errors: list[MixerError] = []
        for task in tasks:
            if is_here[task.source.name]:
                try:
                    with _alone(task):  # a worker whose parent was killed may still be at work
                        _prepare_source(task, self._tokenizer, report, self._streams.get(task.source.name))
                except MixerError as error:
                    errors.append(error)
        errors += _in_processes([task for task in tasks if not is_here[task.source.name]], jobs, report)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise PreparationError("\n".join(map(str, errors)))

    def _publish(self) -> Manifest:
        """Move what was made to its place and write the manifest."""
        made = [
            source
            for source in self._curriculum.read_sources
            if self._ready_folder(source) == self._out / WORK / SOURCES / source.name
        ]
        try:
            is_known = {source.name for source in self._curriculum.read_sources} <= set(
                read_manifest(self._out).sources
            )
        except MixerError:
            is_known = False
        try:
            for source in made:
                place = self._out / SOURCES / source.name
                place.parent.mkdir(exist_ok=True)
                if place.exists():
                    (self._out / MANIFEST).unlink(missing_ok=True)  # from here on the old rows cannot be read
                    shutil.rmtree(place)
                (self._out / WORK / SOURCES / source.name).rename(place)
            if made or not is_known:
                with written_whole(self._out / TOKENIZER) as file:
                    file.write(self._tokenizer.to_json())
                with written_whole(self._out / MANIFEST) as file:
                    manifest = self._manifest()
                    file.write(manifest.model_dump_json(indent=2, exclude=None if manifest.masked else {"masked"}))
            shutil.rmtree(self._out / WORK, ignore_errors=True)
        except OSError as error:
            raise _unwritable(self._out, error) from error
        return read_manifest(self._out)

    def _manifest(self) -> Manifest:
        """Return the manifest of the config's sources, and of others in the folder with the same settings."""
        read = [source.name for source in self._curriculum.read_sources]
        others = sorted({path.name for path in (self._out / SOURCES).iterdir()} - {*read})
        records = {name: _record(self._out / SOURCES / name) for name in (*read, *others)}
        return Manifest(
            code_version=importlib.metadata.version("curriculum-mixer"),
            dtype=self._format.dtype.name,
            masked=self._format.is_masked,
            sequence_length=self._format.sequence_length,
            holdout=self._format.holdout,
            tokenizer=TokenizerManifest(
                definition=tokenizer_definition(self._curriculum),
                fingerprint=self._tokenizer.fingerprint,
                separator=self._tokenizer.separator,
                separator_id=self._tokenizer.separator_id,
                vocab_size=self._tokenizer.vocab_size,
            ),
            sources={
                name: record.source
                for name, record in records.items()
                if record is not None and record.settings == self._format.settings
            },
        )


def _row_format(curriculum: Curriculum, tokenizer: TextTokenizer, shard_bytes: int) -> RowFormat:
    is_masked = curriculum.has_masks
    dtype = masked_dtype(tokenizer.vocab_size) if is_masked else smallest_dtype(tokenizer.vocab_size)
    digest = templates_digest(curriculum, tokenizer)
    return RowFormat(
        dtype=dtype,
        is_masked=is_masked,
        sequence_length=curriculum.sequence_length,
        holdout=curriculum.holdout,
        shard_rows=max(1, shard_bytes // ((curriculum.sequence_length + 1) * dtype.itemsize)),
        settings={
            "sequence_length": curriculum.sequence_length,
            "holdout": curriculum.holdout,
            "the tokenizer's fingerprint": tokenizer.fingerprint,
            "the separator's id": tokenizer.separator_id,
            **({"the digest of the chat templates": digest} if is_masked else {}),
        },
    )


def _record(folder: Path) -> SourceRecord | None:
    """Return the record of a finished source, or None if it is not finished."""
    try:
        return SourceRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def _prepare_source(
    task: _Task, tokenizer: TextTokenizer, report: Report, dataset: IterableDataset | None = None
) -> None:
    from mixer.sources.huggingface import open_stream

    resolve = task.curriculum.resolve
    chat = chat_of(task.source, tokenizer, resolve)
    stream = open_stream(
        task.source,
        resolve=resolve,
        dataset=dataset,
        retries=task.curriculum.retries,
        row_length=task.curriculum.sequence_length + 1,
        vocab_size=tokenizer.vocab_size,
        chat=chat,
    )
    SourcePreparation(
        task.source,
        stream,
        tokenizer,
        task.work / SOURCES / task.source.name,
        row_format=task.row_format,
        resolve=None if dataset is not None else resolve,
    ).run(report)


def _in_processes(tasks: list[_Task], jobs: int, report: Report) -> list[MixerError]:
    """Prepare each source in a process of its own, ``jobs`` at once; return what went wrong."""
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the tokenizer's threads half
    waiting = list(tasks)
    running: dict[Connection, tuple[str, Any]] = {}
    errors: list[MixerError] = []
    threads = max(1, (os.cpu_count() or 1) // min(jobs, max(1, len(tasks))))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                ours, theirs = spawn.Pipe(duplex=False)
                process = spawn.Process(target=_work, args=(task, theirs, threads), daemon=True)
                process.start()
                theirs.close()  # or the end of the worker would not be seen
                running[ours] = (task.source.name, process)
            for connection in wait([*running]):
                assert isinstance(connection, Connection)
                name, process = running[connection]
                try:
                    message = connection.recv()
                except EOFError:
                    process.join()
                    del running[connection]
                    if process.exitcode:
                        errors.append(_death(name, process.exitcode))
                    continue
                if isinstance(message, MixerError):
                    errors.append(message)
                else:
                    report(message)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    return errors


def _death(name: str, code: int) -> PreparationError:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    return PreparationError(f"source {name}: its worker {how}; run `mixer prepare` again: it goes on where it stopped")


@contextmanager
def _alone(task: _Task) -> Iterator[None]:
    """Let nobody else write the rows of a source meanwhile."""
    lock = FileLock(task.work / f".{task.source.name}.lock")
    try:
        lock.acquire(timeout=ORPHAN_WAIT_S)
    except Timeout as error:
        raise PreparationError(
            f"source {task.source.name}: a worker of another `mixer prepare` is still writing its rows; end it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _work(task: _Task, connection: Connection, threads: int) -> None:
    """Prepare one source and send how far it is, and at last what went wrong if anything did."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # read when the tokenizer first needs its threads
    try:
        with _alone(task):
            tokenizer = read_tokenizer(task.work / TOKENIZER, task.separator)
            _prepare_source(task, tokenizer, connection.send)
    except BrokenPipeError:  # whoever started this is gone: nobody else may find it at work
        os._exit(1)
    except MixerError as error:
        connection.send(error)
    finally:
        connection.close()


def _unwritable(folder: Path, error: OSError) -> PreparationError:
    return PreparationError(f"cannot write to {folder}: {error.strerror or error}")
