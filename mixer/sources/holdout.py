"""Which documents are never trained on: a property of the text alone, so that every reader and every run agrees."""

from __future__ import annotations

import hashlib


def is_held_out(document: bytes, fraction: float) -> bool:
    """Return whether a document belongs to the ``fraction`` that is held out; equal documents always go together."""
    digest = hashlib.blake2b(document, digest_size=8, person=b"mixer.holdout").digest()
    return int.from_bytes(digest, "little") < fraction * 2**64
