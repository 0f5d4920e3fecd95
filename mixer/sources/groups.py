"""Groups of documents on their way from a stream to rows: as read, and as encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixer.sources.conversations import Conversations
from mixer.system.threads import Task
from mixer.types import TokenArray

Encoded = TokenArray | Conversations  # rows, uint32 [n, T + 1], or documents as ``packing.joined`` gives them, [N]


@dataclass(frozen=True)
class Read:
    """One group. An empty one is the end of an epoch."""

    num_documents: int
    encoded: Task[Encoded]
    end: dict[str, Any]  # the stream's state after it
    skipped: tuple[str, ...] = ()  # records that were left out: where, and why
