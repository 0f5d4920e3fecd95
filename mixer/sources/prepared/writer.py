"""One source from text to prepared rows, in a folder of its own; killed at any moment, it goes on where it was.

Rows are appended to a plain file, and every few seconds the exact place in the text is saved beside it. Going on cuts
the file back to what that place covers, so that the finished files are the same bytes as without the kill.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import orjson

from mixer.config.sources import SourceConfig
from mixer.errors import EmptySourceError, PreparationError, SourceError, StateMismatchError
from mixer.sources.chat import encode_conversations, packer_of
from mixer.sources.conversations import ConversationPacker
from mixer.sources.holdout import is_held_out, text_bytes, token_bytes
from mixer.sources.masks import narrowed
from mixer.sources.packing import Packer
from mixer.sources.prepared.manifest import (
    RECORD,
    InputFile,
    Shard,
    SourceManifest,
    SourceRecord,
    Split,
    SplitManifest,
    digest_of,
    file_differences,
    input_files,
    source_definition,
)
from mixer.sources.prepared.shards import write_shard, write_split_files, write_splits_file
from mixer.sources.tokenizer import TextTokenizer
from mixer.system.files import written_whole

if TYPE_CHECKING:
    from mixer.sources.streams import Stream

CHUNK_CHARACTERS = 1 << 20  # tokenised at once: enough to keep every core busy, some 100 MB at most
CHUNK_DOCUMENTS = 4096
SAVE_EVERY_S = 2.0
SPLITS: tuple[Split, ...] = ("train", "held_out")
STATE = "state.json"


@dataclass(frozen=True)
class RowFormat:
    """How rows are made and stored; ``settings`` are all that shapes them beside the text, by name."""

    dtype: np.dtype[Any]
    sequence_length: int
    holdout: float
    shard_rows: int
    settings: dict[str, Any]
    is_masked: bool = False  # rows have marks, as ``masks`` says


@dataclass(frozen=True)
class Done:
    """How far a source has come."""

    name: str
    documents: int
    rows: int
    tokens: int
    is_finished: bool = False


@dataclass
class _Split:
    """The growing rows of one split."""

    packer: Packer | ConversationPacker
    documents: int = 0
    tokens: int = 0
    rows: int = 0  # of the current shard
    shards: list[Shard] = field(default_factory=list)

    @property
    def all_rows(self) -> int:
        return sum(shard.rows for shard in self.shards) + self.rows

    def state_dict(self) -> dict[str, Any]:
        return {
            "packer": self.packer.state_dict(),
            "documents": self.documents,
            "tokens": self.tokens,
            "rows": self.rows,
            "shards": [shard.model_dump() for shard in self.shards],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.packer.load_state_dict(state["packer"])
        self.documents, self.tokens, self.rows = state["documents"], state["tokens"], state["rows"]
        self.shards = [Shard(**shard) for shard in state["shards"]]


@dataclass(frozen=True)
class _Chunk:
    """Documents read together, and the place in the text after them."""

    documents: list[Any]  # texts, or token ids if the source has those
    place: dict[str, Any]


class SourcePreparation:
    """Writes the rows of one source into ``folder``: ``train``, ``held_out`` and the record ``source.json``."""

    def __init__(
        self,
        source: SourceConfig,
        stream: Stream[Any],
        tokenizer: TextTokenizer,
        folder: Path,
        *,
        row_format: RowFormat,
        resolve: Callable[[str], Path] | None = None,
    ) -> None:
        """Prepare to read ``stream`` from its beginning, or from where ``folder`` says.

        Args:
            source: whose rows.
            stream: its documents.
            tokenizer: what makes them token ids.
            folder: for what is written; created if need be.
            row_format: length, type and number of rows in a file.
            resolve: makes a path of the config file one of this machine; None for text that is not of files.
        """
        self._source = source
        self._stream = stream
        self._tokenizer = tokenizer
        self._folder = folder
        self._format = row_format
        is_target = source.role == "target"  # which is never trained on
        self._holdout, self._needed = (1.0, SPLITS[1]) if is_target else (row_format.holdout, SPLITS[0])
        self._resolve = resolve
        self._files = self._input_files()
        self._key = digest_of([row_format.settings, row_format.shard_rows, source_definition(source)])
        self._chat = stream.chat
        length = row_format.sequence_length
        self._splits = {split: _Split(packer_of(length, tokenizer, self._chat)) for split in SPLITS}
        self._rows_files: dict[Split, IO[bytes]] = {}
        self._leftover: list[Path] = []  # rows that are in a shard now, but not yet in a saved place

    @property
    def done(self) -> Done:
        """How far it has come."""
        splits = self._splits.values()
        return Done(
            name=self._source.name,
            documents=sum(split.documents for split in splits),
            rows=sum(split.all_rows for split in splits),
            tokens=sum(split.tokens for split in splits),
        )

    def run(self, report: Callable[[Done], None]) -> SourceManifest:
        """Read to the end of the text, and return what was made; ``report`` is called after every few documents.

        Raises:
            SourceError: text that cannot be read, that does not fill one row, or that changed meanwhile.
            PreparationError: rows that cannot be written; all up to the last saved place are kept.
        """
        try:
            with self._explained():
                if not self._is_restored():
                    self._begin()
            report(self.done)
            saved_at = time.monotonic()
            for chunk in self._chunks():
                self._append(chunk)
                if time.monotonic() - saved_at > SAVE_EVERY_S:
                    self._save(chunk.place)
                    saved_at = time.monotonic()
                report(self.done)
            manifest = self._finish()
        finally:
            for file in self._rows_files.values():
                file.close()
        report(replace(self.done, is_finished=True))
        return manifest

    def _chunks(self) -> Iterator[_Chunk]:
        """Read ahead by one chunk, so that parsing overlaps with tokenising, which needs no interpreter's lock."""
        with ThreadPoolExecutor(1) as reader:
            following = reader.submit(self._read_chunk)
            while (chunk := following.result()).documents:
                following = reader.submit(self._read_chunk)
                yield chunk

    def _read_chunk(self) -> _Chunk:
        documents: list[Any] = []
        size = 0
        while len(documents) < CHUNK_DOCUMENTS and size < CHUNK_CHARACTERS:
            group = self._stream.next_group()
            if not len(group):
                break
            documents += list(group)
            size += sum(map(len, group))
        return _Chunk(documents, self._stream.state_dict())

    def _append(self, chunk: _Chunk) -> None:
        is_text = self._source.token_column is None
        encoded: Any = chunk.documents
        if self._chat is not None:
            encoded = encode_conversations(chunk.documents, self._tokenizer)
        elif is_text:
            encoded = self._tokenizer.encode(chunk.documents)
        hashed = text_bytes if is_text else token_bytes
        fraction = self._holdout
        is_out = [fraction > 0 and is_held_out(hashed(document), fraction) for document in chunk.documents]
        for split in SPLITS:
            documents = [ids for ids, out in zip(encoded, is_out, strict=True) if out == (split == "held_out")]
            if not documents:
                continue
            growing = self._splits[split]
            are_rows = self._source.rows is not None
            rows = np.stack(documents) if are_rows else growing.packer.push(documents)
            growing.documents += len(documents)
            growing.tokens += sum(map(len, documents)) + (0 if are_rows else len(documents))
            with self._explained():
                self._write(split, self._stored(rows))

    def _stored(self, rows: Any) -> np.ndarray[Any, Any]:
        """Return rows of 32 bits in the type that they are stored in."""
        return narrowed(rows, self._format.dtype) if self._format.is_masked else rows.astype(self._format.dtype)

    def _write(self, split: Split, rows: np.ndarray[Any, Any]) -> None:
        growing = self._splits[split]
        while len(rows):
            piece = rows[: self._format.shard_rows - growing.rows]
            rows = rows[len(piece) :]
            data = memoryview(piece.tobytes())
            while data:  # an unbuffered file may take less than it is given
                data = data[self._rows_file(split).write(data) :]
            growing.rows += len(piece)
            if growing.rows == self._format.shard_rows:
                self._close_shard(split)

    def _close_shard(self, split: Split) -> None:
        growing = self._splits[split]
        path = self._rows_path(split)
        self._rows_files.pop(split).close()
        rows = np.memmap(path, dtype=self._format.dtype, mode="r", shape=(growing.rows, growing.packer.row_length))
        growing.shards.append(write_shard(self._folder / split / f"data-{len(growing.shards):05d}.arrow", rows))
        growing.rows = 0
        self._leftover.append(path)

    def _rows_path(self, split: Split) -> Path:
        return self._folder / f"{split}-{len(self._splits[split].shards):05d}.rows"

    def _rows_file(self, split: Split) -> IO[bytes]:
        """Return the file of the current shard's rows, cut back to those that count."""
        if split not in self._rows_files:
            growing = self._splits[split]
            path = self._rows_path(split)
            path.touch()
            file = path.open("r+b", buffering=0)
            file.truncate(growing.rows * growing.packer.row_length * self._format.dtype.itemsize)
            file.seek(0, os.SEEK_END)
            self._rows_files[split] = file
        return self._rows_files[split]

    def _save(self, place: dict[str, Any]) -> None:
        splits = {name: split.state_dict() for name, split in self._splits.items()}
        with self._explained():
            for file in self._rows_files.values():
                os.fsync(file.fileno())
            with written_whole(self._folder / STATE) as state:
                state.write(orjson.dumps({"key": self._key, "place": place, "splits": splits}).decode())
            while self._leftover:
                self._leftover.pop().unlink(missing_ok=True)

    def _begin(self) -> None:
        """Begin with nothing, whatever another preparation has left here."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for split in SPLITS:
            (self._folder / split).mkdir(parents=True, exist_ok=True)

    def _is_restored(self) -> bool:
        """Go to the saved place; False if there is none, or if its text, settings or rows have changed since."""
        try:
            state = orjson.loads((self._folder / STATE).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return False
        if state.get("key") != self._key or not self._has_rows_of(state["splits"]):
            return False
        try:
            self._stream.load_state_dict(state["place"])
        except StateMismatchError:
            self._stream.restart()
            return False
        for name, split in self._splits.items():
            split.load_state_dict(state["splits"][name])
        return True

    def _has_rows_of(self, states: dict[Split, Any]) -> bool:
        """Whether the files still hold what a saved place says; the power may have failed since."""
        row_bytes = (self._format.sequence_length + 1) * self._format.dtype.itemsize
        sizes = {}
        for split, state in states.items():
            sizes.update({self._folder / split / shard["file"]: shard["size"] for shard in state["shards"]})
            if state["rows"]:
                sizes[self._folder / f"{split}-{len(state['shards']):05d}.rows"] = state["rows"] * row_bytes
        return all(path.is_file() and path.stat().st_size >= size for path, size in sizes.items())

    def _finish(self) -> SourceManifest:
        splits = {name: self._finished(name, split) for name, split in self._splits.items()}
        if not splits[self._needed].rows:
            raise EmptySourceError(
                f"source {self._source.name}: its {splits[self._needed].tokens} tokens do not fill one row of "
                f"{self._format.sequence_length + 1}; give it more text, or lower sequence_length"
            )
        changes = [*file_differences(self._source.name, self._files, self._input_files())]
        if changes:
            raise SourceError(f"{'; '.join(changes)}: this happened while it was read; run `mixer prepare` again")
        manifest = SourceManifest(
            definition=source_definition(self._source),
            files=self._files,
            revision=self._stream.state_dict()["revision"],
            train=splits["train"],
            held_out=splits["held_out"],
        )
        with self._explained():
            example = np.empty((0, self._format.sequence_length + 1), dtype=self._format.dtype)
            filled = [split for split in SPLITS if splits[split].rows]
            for split in SPLITS:
                if split in filled:
                    write_split_files(self._folder / split, split, splits[split].shards, example)
                else:
                    (self._folder / split).rmdir()
            write_splits_file(self._folder, filled)
            with written_whole(self._folder / RECORD) as record:
                record.write(SourceRecord(settings=self._format.settings, source=manifest).model_dump_json(indent=2))
            for leftover in [*self._folder.glob("*.rows"), *self._folder.glob(f"*{STATE}*")]:  # parts of it, too
                leftover.unlink(missing_ok=True)
        return manifest

    def _input_files(self) -> tuple[InputFile, ...]:
        return input_files(self._source, self._resolve) if self._resolve else ()

    def _finished(self, name: Split, split: _Split) -> SplitManifest:
        left = split.packer.flush()
        with self._explained():
            self._write(name, self._stored(left))
            if split.rows:
                self._rows_file(name)
                self._close_shard(name)
        return SplitManifest(
            documents=split.documents,
            rows=split.all_rows,
            tokens=split.tokens,
            tail_tokens=split.packer.num_waiting,
            shards=tuple(split.shards),
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what a failed write means for the preparation."""
        try:
            yield
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "make room" if is_full else "mend that"
            raise PreparationError(
                f"source {self._source.name}: cannot write to {self._folder}: {error.strerror or error}; "
                f"{remedy} and run `mixer prepare` again: it goes on where it stopped"
            ) from error
