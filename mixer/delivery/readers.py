"""The readers of a run's rows: over rows on disk, prepared or of token files, or over streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.token_files import beside_token_files, streamed_beside_token_files
from mixer.delivery.batch import BatchReader, Planner, PreparedReader
from mixer.delivery.probes import ProbeRows
from mixer.errors import ConfigError, TopologyError
from mixer.sampling.phases import Phase
from mixer.sources.masks import masked_dtype
from mixer.sources.opening import open_sources
from mixer.sources.packing import smallest_dtype

if TYPE_CHECKING:
    import datasets

    from mixer.sources.prepared.rows import Prepared, PreparedRows
    from mixer.sources.shared import Participant
    from mixer.sources.token_files.rows import TokenFileRows
    from mixer.sources.tokenizer import TextTokenizer


class ReaderFactory:
    """Where the run's rows come from: prepared on disk, or streamed; opens one reader after another.

    Pickles: each process opens its own files.

    Args:
        curriculum: names the sources, or the ``prepared`` folder, or token files, or both of these.
        rank, world_size: whose rows of the global batch.
        streams: data sets by source name, instead of what the config names.
        tokenizer: instead of the one that the config names.
        prepared: what lies in the ``prepared`` folder, opened already: several runs may read it at once.
        member: the run's part in what the runs of this process stream together.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        rank: int,
        world_size: int,
        streams: Mapping[str, datasets.IterableDataset] | None = None,
        tokenizer: TextTokenizer | None = None,
        prepared: Prepared | None = None,
        member: Participant | None = None,
    ) -> None:
        curriculum.rows_of_rank(world_size)
        self.curriculum = curriculum
        self.rank, self.world_size = rank, world_size
        self._streams = streams
        self._tokenizer = tokenizer
        self._member = member
        self._known: dict[str, str] = {}
        self._prepared: Prepared | None = None
        self._token_files: dict[str, TokenFileRows] = {}
        if curriculum.prepared is not None:
            from mixer.sources.prepared.rows import Prepared

            self._prepared = prepared or Prepared.open(curriculum.resolve(curriculum.prepared))
            self._prepared.check_against(curriculum, tokenizer.fingerprint if tokenizer is not None else None)
            targets = {target.name: self._prepared.held_out(target.name) for target in curriculum.targets}
            read = {**self._prepared.sources, **targets}
            self._known = {name: f"rows {rows.fingerprint}" for name, rows in read.items()}
        if any(source.token_files is not None for source in curriculum.sources):
            self._open_token_files()

    def _open_token_files(self) -> None:
        from mixer.sources.token_files.opening import open_token_files

        if streamed := streamed_beside_token_files(self.curriculum):
            raise ConfigError(beside_token_files(streamed))
        tokenizer = self.tokenizer
        self._token_files = open_token_files(
            self.curriculum, vocab_size=tokenizer.vocab_size, separator_id=tokenizer.separator_id
        )
        self._known |= {name: f"rows {rows.fingerprint}" for name, rows in self._token_files.items()}

    @property
    def is_prepared(self) -> bool:
        """Whether any step can be read at any time: rows are on disk, prepared or in token files."""
        return self._prepared is not None or bool(self._token_files)

    @property
    def _on_disk(self) -> dict[str, PreparedRows | TokenFileRows]:
        return {**(self._prepared.sources if self._prepared is not None else {}), **self._token_files}

    @property
    def masked_sources(self) -> list[str]:
        """The sources of which the loss of some tokens is not to count."""
        return [name for name, rows in self._token_files.items() if rows.has_mask]

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer given, the one that made the prepared rows, or the curriculum's; loaded when first needed."""
        if self._tokenizer is None:
            from mixer.sources.tokenizer_training import (
                load_tokenizer,  # imported late: prepared rows alone need no tokenizer
            )

            self._tokenizer = (
                load_tokenizer(self.curriculum, self._streams) if self._prepared is None else self._prepared.tokenizer()
            )
        return self._tokenizer

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """The smallest type of token ids that holds the vocabulary, uint8, uint16 or uint32: prepared rows have it.

        Where there are tokens whose loss does not count, it holds their mark, too.
        """
        if self._prepared is not None:
            return self._prepared.dtype
        return (masked_dtype if self.is_masked else smallest_dtype)(self.tokenizer.vocab_size)

    @property
    def is_masked(self) -> bool:
        """Whether tokens whose loss does not count are marked in rows, as ``masks`` says."""
        return self.curriculum.has_masks if self._prepared is None else self._prepared.manifest.masked

    @cached_property  # every report of a rank proves it
    def fingerprint(self) -> str:
        """Digest of the run and of the rows it reads."""
        return self.fingerprint_under(self.curriculum.fingerprint)

    def fingerprint_under(self, curriculum: str) -> str:
        """Return the digest of these rows under the curriculum of that fingerprint."""
        files = "".join(f" and {name} {source.fingerprint}" for name, source in self._token_files.items())
        if self._prepared:
            return f"{curriculum} with rows {self._prepared.fingerprint}{files}"
        from mixer.sources.chat import templates_digest  # imported late, as the tokenizer is

        templates = templates_digest(self.curriculum, self.tokenizer) if self.is_masked else None
        rows = f"tokenizer {self.tokenizer.fingerprint}{f' and {templates}' if templates else ''}"
        return f"{curriculum} with {rows}{files}"

    def probe_rows(self) -> ProbeRows | None:
        """Return this rank's part of the held-out rows of each probe; None if the curriculum asks for none.

        Raises:
            ConfigError: sources whose held-out rows cannot be read, or that have none.
            TopologyError: fewer rows than ranks.
        """
        if self.curriculum.probes is None:
            return None
        return ProbeRows(self.curriculum, self._prepared, rank=self.rank, world_size=self.world_size)

    def stop_sharing(self) -> None:
        """Let other runs of this process keep nothing for this one."""
        if self._member is not None:
            self._member.leave()

    def known(self) -> dict[str, str]:
        """Return which data each source is of, for a journal's header; of streams, those that were opened."""
        return dict(self._known)

    def epoch_tokens(self) -> dict[str, int]:
        """Return the tokens of one epoch of each source, where they are known beforehand."""
        return {name: rows.num_tokens for name, rows in self._on_disk.items()}

    def open(
        self,
        phase_at: Callable[[int], Phase],
        *,
        worker: int = 0,
        num_workers: int = 1,
        on_read_through: Callable[[str, int], None] | None = None,
        on_skipped: Callable[[str, str], None] | None = None,
    ) -> BatchReader:
        """Open the reader of every ``num_workers``-th step, from ``worker`` on.

        Raises:
            ConfigError, SourceError, TokenizerError: what cannot be read.
            TopologyError: several readers of streams that cannot agree on when the run ends.
        """
        curriculum = self.curriculum
        planner = Planner(curriculum, phase_at, rank=self.rank, world_size=self.world_size)
        if self.is_prepared:
            sources = [self._on_disk[name] for name in curriculum.names]
            return PreparedReader(curriculum, sources, planner, every=num_workers, dtype=self.token_dtype)
        num_readers = self.world_size * num_workers
        ending = [source.name for source in curriculum.sources if source.on_exhausted == "stop"]
        if num_readers > 1 and ending:
            raise TopologyError(
                f"source {ending[0]} is to stop the run when it runs dry, but {num_readers} readers stream it "
                "separately and would end at different steps; prepare the sources (`mixer prepare`), read with one "
                "process, or set on_exhausted to repeat"
            )
        from mixer.delivery.streamed import StreamedReader  # imported late: brings `datasets`, 0.7 s and 70 MB

        streams = open_sources(
            curriculum,
            self.tokenizer,
            self._streams,
            reader=self.rank * num_workers + worker,
            num_readers=num_readers,
            member=self._member,
        )
        fingerprints = {rows.name: getattr(rows, "fingerprint", None) for rows in streams}
        self._known = {name: fingerprint for name, fingerprint in fingerprints.items() if fingerprint is not None}
        tell = on_read_through if num_readers == 1 else None  # a share says nothing of the whole
        return StreamedReader(streams, planner, every=num_workers, on_read_through=tell, on_skipped=on_skipped)
