"""Which documents are held out: decided by what a document says, never by where or when it is read.

The same document is held out in every source, order, seed and run, so that a duplicate of an evaluation document in
another source does not reach the training stream either; a larger fraction holds out a superset of a smaller one's.
"""

from __future__ import annotations

import xxhash

from mixer.types import TokenArray

KEY = 0x6D69786572  # "mixer": ours alone, so that text split by another tool's plain hash is not split alike


def is_held_out(document: bytes, fraction: float) -> bool:
    """Return whether a document belongs to the held-out ``fraction``, in [0, 1].

    It does if its XXH3 hash of 64 bits with the seed ``KEY`` is below ``fraction * 2**64``. Ask with the bytes of
    ``text_bytes`` or ``token_bytes``; the same text as characters and as tokens are two documents.
    """
    return xxhash.xxh3_64_intdigest(document, seed=KEY) < fraction * 2**64


def text_bytes(text: str) -> bytes:
    """Return what is hashed of a document of text: its UTF-8, as rendered and before the tokenizer."""
    return text.encode("utf-8", "surrogatepass")


def token_bytes(ids: TokenArray) -> bytes:
    """Return what is hashed of a document of token ids: each as 4 bytes, the lowest first, without a separator."""
    return ids.astype("<u4", copy=False).tobytes()
