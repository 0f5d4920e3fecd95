"""``RemoteMixtureDataset``: ``MixtureDataset``'s interface over a service, so that a trainer changes one line.

Some batches are always on their way, in threads; which rows they hold is decided by the server alone, so that neither
prefetching nor a restart of either side changes them.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.delivery.batch import RowBatch
from mixer.delivery.consumers import check_consumer
from mixer.delivery.feedback import LossAccumulator
from mixer.delivery.ranks import default_ranks
from mixer.delivery.tensors import Batch, single_rows, tensors_of
from mixer.errors import InvalidLossError, ProbeNotOfferedError, RepeatedRowsError
from mixer.journal.records import record_to_phase
from mixer.losses import SourceLosses, check_losses
from mixer.region.region import Region
from mixer.sampling.phases import Phase
from mixer.sources.base import Progress
from mixer.sources.packing import WIDE
from mixer.walk.state import check_state
from service.client.client import MixerClient
from service.errors import RunEndedError
from service.wire.schemas import Sample

if TYPE_CHECKING:
    from mixer.sources.tokenizer import TextTokenizer

STATE_VERSION = 1
LEAST_AHEAD, AHEAD_S, AHEAD_BYTES = 4, 0.02, 16 << 20
AHEAD_STEPS = 128  # four times what a server builds ahead of what is asked for, unless it is told otherwise
CONNECTIONS = 3  # that ask at the same time, each for several batches at once

log = logging.getLogger(__name__)


class RemoteWalk:
    """The walk as a trainer sees it: it can be asked and told what a ``Walk`` can, and decides at the server."""

    def __init__(self, client: MixerClient, curriculum: Curriculum, world_size: int | None = None) -> None:
        self._client, self.curriculum, self.names = client, curriculum, curriculum.names
        self._world_size = world_size
        self._kept: deque[Phase] = deque(maxlen=8)

    @property
    def frontier(self) -> int:
        """The first step that no phase covers yet."""
        return self._client.status().frontier

    def region_at(self, step: int) -> Region:
        """Return the region of the phase that covers ``step``, its bounds drawn tight."""
        found = self._client.weights(step)
        return Region(self.names, floors=found.lower, caps=found.upper)

    def report(self, step: int, losses: SourceLosses) -> bool:
        """Take in a rank's losses; durable when this returns. False if they were known."""
        return self._client.report(step, losses, self.names, self._world_size)

    def pivot(self, pivot: Pivot, at_step: int | None = None) -> int:
        """Redraw the region, from the end of the newest phase or ``at_step`` on; return that step."""
        return self._client.pivot(pivot, "next" if at_step is None else at_step).at_step

    def phase_at(self, step: int) -> Phase:
        """Return the phase that covers ``step``, which a batch or a weight was asked of."""
        for phase in self._kept:
            if phase.start <= step < phase.end:
                return phase
        self._client.weights(step)  # waits until it is decided
        phase = record_to_phase(self._client.phases(step, 1).phases[0], self.names)
        self._kept.append(phase)
        return phase


class _Asked:
    """Steps that one thread asks for, and what came of it so far."""

    def __init__(self, steps: range) -> None:
        self.steps = steps
        self.came: SimpleQueue[list[RowBatch] | Exception] = SimpleQueue()
        self.is_given_up = False
        self._at_hand: deque[RowBatch] = deque()
        self._num_given = 0

    @property
    def is_done(self) -> bool:
        """Whether all of them were given."""
        return self._num_given == len(self.steps)

    def next(self) -> RowBatch:
        """Return the next batch, or raise what came instead of it."""
        if not self._at_hand:
            came = self.came.get()
            if isinstance(came, Exception):
                raise came
            self._at_hand.extend(came)
        self._num_given += 1
        return self._at_hand.popleft()


class Ahead:
    """How many batches are on their way: a number that was given, or what the trainer takes in a moment.

    A trainer whose steps take their time needs few, and each one more is one that no pivot changes. One that
    does nothing with them needs many small ones, as each request brings all of them that are there.
    """

    def __init__(self, given: int | None) -> None:
        self.num = LEAST_AHEAD if given is None else given
        self._is_fixed = given is not None
        self._step_s = AHEAD_S

    def note(self, took_s: float, num_bytes: int) -> None:
        """Note how long the trainer took for a batch, and how large that was."""
        if not self._is_fixed:
            self._step_s += (took_s - self._step_s) / 8
            most = max(LEAST_AHEAD, min(AHEAD_BYTES // num_bytes, AHEAD_STEPS))
            self.num = max(LEAST_AHEAD, min(most, int(AHEAD_S / max(self._step_s, 1e-9))))


class _Coming:
    """The batches of some steps, in order, of which some are always on their way.

    Args:
        client: that asks for them, in threads.
        steps: which ones.
        rank, world_size: whose rows.
        ahead: how many are on their way.
    """

    def __init__(self, client: MixerClient, steps: range, rank: int, world_size: int, ahead: Ahead) -> None:
        self._client, self._rank, self._world_size, self._ahead = client, rank, world_size, ahead
        self._left = steps  # not asked for yet
        self._asked: deque[_Asked] = deque()
        self._num_coming = self._num_bytes = 0
        self._given_s = 0.0
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="remote-batches")

    def next(self) -> RowBatch:
        """Return the next batch.

        Raises:
            RunEndedError: there is none.
            MixerError: what came instead of it.
        """
        together = -(-self._ahead.num // CONNECTIONS)  # steps that one thread asks for
        while self._left and (not self._asked or self._num_coming + together <= self._ahead.num):
            asked, self._left = _Asked(self._left[:together]), self._left[together:]
            self._threads.submit(self._fetch, asked)
            self._asked.append(asked)
            self._num_coming += len(asked.steps)
        if not self._asked:
            raise RunEndedError("all steps of the run were given")
        rows = self._asked[0].next()
        self._num_coming -= 1
        if self._asked[0].is_done:
            self._asked.popleft()
        self._num_bytes, self._given_s = rows.rows.nbytes, time.perf_counter()
        return rows

    def note_taken(self) -> None:
        """Note that the trainer is done with the batch that was given last."""
        self._ahead.note(time.perf_counter() - self._given_s, self._num_bytes)

    def close(self) -> None:
        """Ask for nothing more."""
        for asked in self._asked:
            asked.is_given_up = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, asked: _Asked) -> None:
        """Fetch batches, and hand on what comes at once: the next of them may wait for the losses of those."""
        left = asked.steps
        try:
            while left and not asked.is_given_up:  # else its data set is not iterated any more
                came = self._client.batches(left, self._rank, self._world_size, is_given_up=lambda: asked.is_given_up)
                left = left[len(came) :]
                asked.came.put(came)
        except Exception as error:  # whoever waits for the batch hears of it
            asked.came.put(error)


class _Probing:
    """A rank's side of the probes of a run: asks at the first batch of each phase that offers one."""

    def __init__(self, client: MixerClient, curriculum: Curriculum, rank: int, world_size: int) -> None:
        self._client, self._curriculum = client, curriculum
        self._rank, self._world_size = rank, world_size
        self._reports: LossAccumulator | None = None  # of the newest probe, of which parts may be reported
        self.clear()

    def clear(self) -> None:
        """Begin anew: the run stands elsewhere."""
        self._phase = self._asked = -1  # of the newest batch; of the newest probe that was asked for
        self._step = 0
        self._reports = None

    def note(self, step: int, phase: int) -> None:
        """Note the step and phase of a batch that is given out."""
        if phase > self._phase:
            self._phase, self._step = phase, step

    def due(self) -> RowBatch | None:
        """Return the rows of the probe that the newest phase offers, once; None if it offers none any more."""
        probes = self._curriculum.probes
        if probes is None or self._phase <= self._asked or self._phase % probes.phases:
            return None
        self._asked = self._phase
        try:
            rows = self._client.probe(self._step, self._rank, self._world_size)
        except ProbeNotOfferedError:  # the run goes on in the middle of a phase
            return None
        names = self._curriculum.probed_names
        self._reports = LossAccumulator(len(rows.rows), self._curriculum.sequence_length, names)
        return rows

    def report(
        self, probe: Mapping[str, Any], token_losses: Tensor, mask: Tensor | None, num_tokens: Tensor | None
    ) -> bool:
        """Send the losses of a probe once all of its rows are there; return whether they were not known."""
        if self._reports is None:
            raise ProbeNotOfferedError("report_probe: no probe was given out; report what probe_batch() gives")
        was_new, names = False, self._curriculum.probed_names
        for step, losses in self._reports.add(probe, token_losses, mask, num_tokens):
            assert losses is not None, "every rank of a service has losses"
            check_losses(losses, names, step=step)
            mine = replace(losses, rank=self._rank)
            was_new = self._client.report_probe(step, mine, names, self._world_size) or was_new
        return was_new


class RemoteMixtureDataset(IterableDataset[Batch]):
    """A rank's batches of a run that a service decides and delivers; see ``MixtureDataset`` for what a batch is.

    Every rank reports its own losses, and the server sums them: nothing is reduced between trainers. With DataLoader
    workers, worker w of N asks for every N-th step.

    Args:
        url: of the server.
        rank, world_size: whose rows; those of ``torch.distributed`` by default, or all.
        token: of scope ``train``, if the server has tokens; default: the variable MIXER_TOKEN.
        run: its name; the server's default run if None.
        prefetch: batches on their way while one is trained on, in this process or in each worker; by default 4, and
            more for a trainer that takes more than that in 20 ms, up to 16 MiB or 128 of them.
        batches: yield whole batches; False yields rows.
        provenance, compact: as in ``MixtureDataset``.
        patience_s: as in ``MixerClient``.
        verify: an ``ssl.SSLContext`` for certificates of your own.

    Raises:
        UnreachableError: there is no server.
        TopologyError: ranks that cannot share the batch.
    """

    def __init__(
        self,
        url: str,
        rank: int | None = None,
        world_size: int | None = None,
        token: str | None = None,
        *,
        run: str | None = None,
        prefetch: int | None = None,
        batches: bool = True,
        provenance: bool = False,
        compact: bool = False,
        patience_s: float | None = None,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__()
        if prefetch is not None and prefetch < 1:
            raise ValueError(f"prefetch is {prefetch}; at least one batch is on its way")
        self.rank, self.world_size = default_ranks(rank, world_size)
        self._client = MixerClient(url, token=token, run=run, patience_s=patience_s, verify=verify)
        config = self._client.config()
        data = {key: value for key, value in config["curriculum"].items() if value is not None}
        self.curriculum = Curriculum.from_data(data, base_dir=".")
        rows = self.curriculum.rows_of_rank(self.world_size)
        self._reports = LossAccumulator(rows, self.curriculum.sequence_length, self.curriculum.names)
        self._probing = _Probing(self._client, self.curriculum, self.rank, self.world_size)
        self.walk = RemoteWalk(self._client, self.curriculum, self.world_size)
        self._fingerprint: str = config["fingerprint"]
        self._parent: dict[str, Any] | None = config.get("parent")
        self._ahead, self._batches, self._provenance = Ahead(prefetch), batches, provenance
        self._is_compact = compact
        self._step = self._row = 0

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """What text became token ids with; raises TokenizerError if the run has only the ids."""
        return self._client.tokenizer()

    @property
    def step(self) -> int:
        """The step of the next batch, as far as this process knows."""
        return self._step

    def __iter__(self) -> Iterator[Batch]:
        check_consumer(self, is_whole=self._batches)
        return self._iterate()

    def _iterate(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        steps = range(self._step + worker, self.curriculum.total_steps, num_workers)
        coming = _Coming(self._client, steps, self.rank, self.world_size, self._ahead)
        first, begin = self._step, self._row
        try:
            while True:
                if self._batches:
                    yield self._received(coming, num_workers)  # kept by nobody here, so that its memory is used again
                else:
                    batch = self._received(coming, num_workers)
                    row = begin if batch["step"] == first else 0
                    yield from single_rows(batch, row, self._step, self._stand_at)
                    del batch  # as above
                coming.note_taken()
        except RunEndedError:
            return
        finally:
            coming.close()

    def _received(self, coming: _Coming, num_workers: int) -> Batch:
        """Return the next batch, noting where the one after it is."""
        rows = coming.next()
        self._probing.note(rows.step, rows.phase)
        self._stand_at(rows.step + num_workers, 0)
        tokens = rows.split(rows.rows.dtype if self._is_compact else WIDE)
        return tensors_of(tokens, provenance=self._provenance)

    def _stand_at(self, step: int, row: int) -> None:
        self._step, self._row = step, row

    def report(
        self,
        batch: Mapping[str, Any],
        token_losses: Tensor,
        mask: Tensor | None = None,
        *,
        num_tokens: Tensor | None = None,
    ) -> bool:
        """Tell the service what this rank's rows taught; see ``MixtureDataset.report``.

        Returns:
            Whether a step was taken in that was not known; when this returns it is durable.
        """
        was_new = False
        for step, losses in self._reports.add(batch, token_losses, mask, num_tokens):
            assert losses is not None, "every rank of a service has losses"
            try:
                was_new = self.report_sums(step, losses) or was_new
            except InvalidLossError as error:
                raise self._reports.located(step, error) from None
        return was_new

    def probe_batch(self, batch: Mapping[str, Any] | None = None) -> Batch | None:
        """Return this rank's held-out rows of the probe that is due, or None; see ``MixtureDataset.probe_batch``.

        Args:
            batch: in hand, where DataLoader workers fetch batches, of which this process does not know.
        """
        if batch is not None:
            self._probing.note(int(batch["step"]), int(batch["phase"]))
        rows = self._probing.due()
        if rows is None:
            return None
        return tensors_of(rows.split(rows.rows.dtype if self._is_compact else WIDE), provenance=False)

    def report_probe(
        self,
        probe: Mapping[str, Any],
        token_losses: Tensor,
        mask: Tensor | None = None,
        *,
        num_tokens: Tensor | None = None,
    ) -> bool:
        """Tell the service what this rank measured on a probe; see ``MixtureDataset.report_probe``."""
        return self._probing.report(probe, token_losses, mask, num_tokens)

    def report_sums(self, step: int, losses: SourceLosses) -> bool:
        """Tell the service what this rank's rows taught, from sums by source; see ``MixtureDataset.report_sums``."""
        check_losses(losses, self.curriculum.names, step=step)
        report = losses if losses.rank == self.rank else replace(losses, rank=self.rank)
        was_new = False
        try:
            was_new = self.walk.report(step, report)
        except RepeatedRowsError as error:  # as after a restart with another number of ranks
            log.warning("%s", error)
        if step >= self._step:  # workers fetch, and this process hears of a batch when it is reported
            self._stand_at(step + 1, 0)
        return was_new

    def post_sample(self, sample: Mapping[str, Any]) -> None:
        """Show a text that the model wrote on the service's page, with the fields of ``Sample``."""
        self._client.post_sample(Sample(**sample))

    def progress(self) -> dict[str, Progress]:
        """Return what each source has given, in all ranks together, to the batches before ``step``."""
        found = self._client.progress(self._step)
        return {name: Progress(**record) for name, record in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return plain data from which the rest of this rank's batches follow exactly."""
        place = {"step": self._step, "row": self._row}
        return {"version": STATE_VERSION, "fingerprint": self._fingerprint, **place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, or a fork from its parent's of the step where it begins.

        Raises:
            StateMismatchError: a state of another run, naming both.
        """
        expected, parent = self._fingerprint, self._parent
        if parent is not None and (state.get("fingerprint"), state.get("step")) == (
            parent["fingerprint"],
            parent["step"],
        ):
            expected = parent["fingerprint"]
        check_state(state, version=STATE_VERSION, fingerprint=expected, what="remote data set state")
        self._step, self._row = state["step"], state["row"]
        self._probing.clear()
        self._reports.clear()
