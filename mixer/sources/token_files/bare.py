"""Bare token ids in a ``.bin``, as nanoGPT writes them, and those with the header of llm.c.

The header is 256 numbers of 32 bits: a magic number, a version, how many ids follow and, in NeMo Automodel's, how many
bytes each takes. Speedruns of nanoGPT (modded-nanogpt) write llm.c's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mixer.sources.token_files.base import DTYPES, Contiguous, malformed, numbers, read_head
from mixer.types import IntArray

HEADER_BYTES = 1024
LLM_C = {20240520: (1, "uint16"), 20240801: (7, "uint32")}  # magic: version, type of the ids
NEMO, NEMO_VERSION, NEMO_TYPES = 278895051, 1, {2: "uint16", 4: "uint32"}


class BareFile(Contiguous):
    """Token ids of a type that nothing in the file says.

    Args:
        path: the file.
        dtype: as it was written.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        read_head(path, 1)
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise malformed(path, f"its {size:,} bytes are no whole number of ids of {dtype.itemsize} bytes")
        super().__init__(path, dtype=dtype, num_tokens=size // dtype.itemsize)


class HeadedFile(Contiguous):
    """Token ids after a header of 1,024 bytes; the writers put the separator before each document, not after it.

    Args:
        path: the file; a ``.bos.idx`` beside it says where documents begin.
    """

    separator_leads = True

    def __init__(self, path: Path) -> None:
        head = read_head(path, HEADER_BYTES)
        if len(head) < HEADER_BYTES:
            raise malformed(path, f"it has {len(head)} bytes, fewer than its header of {HEADER_BYTES:,}")
        magic, version, num_tokens, itemsize = np.frombuffer(head, "<i4", 4).tolist()
        if magic not in (*LLM_C, NEMO):
            raise malformed(path, f"it begins with the number {magic}, not with one of {[*LLM_C, NEMO]}")
        known, kind = LLM_C.get(magic, (NEMO_VERSION, NEMO_TYPES.get(itemsize)))
        if version != known:
            raise malformed(path, f"it is of version {version}, and version {known} is known")
        if kind is None:
            raise malformed(path, f"its ids have {itemsize} bytes each; known: {[*NEMO_TYPES]}")
        if num_tokens < 0:
            raise malformed(path, f"its header counts {num_tokens} ids")
        begins = path.with_suffix(".bos.idx") if magic == NEMO else path
        beside = [begins] if begins != path and begins.is_file() else []
        super().__init__(path, dtype=DTYPES[kind], num_tokens=num_tokens, offset=HEADER_BYTES, beside=beside)

    def borders(self) -> IntArray | None:
        """See ``Contiguous``.

        The index has the place of a write in bytes plus that of the id in it: both are one where each document is
        written by itself, as NeMo does.
        """
        if not self.beside:
            return None
        [index] = self.beside
        size = index.stat().st_size
        if size % 4:
            raise malformed(index, f"its {size:,} bytes are no whole number of places of 4 bytes")
        places = numbers(index, "<u4", size // 4, 0).astype(np.int64) - HEADER_BYTES
        begins = places // self.dtype.itemsize
        is_wrong = (
            (places % self.dtype.itemsize != 0) | (np.diff(places, prepend=[-1]) <= 0) | (begins >= self.num_tokens)
        )
        if not len(begins) or is_wrong.any() or begins[0]:
            at = int(is_wrong.argmax()) if len(begins) else 0
            found = "none" if not len(begins) else f"byte {places[at] + HEADER_BYTES:,} as number {at:,}"
            raise malformed(
                index,
                f"it has {found}, but documents begin at rising places from byte {HEADER_BYTES:,} on, within "
                f"{self.size:,} bytes",
            )
        return np.append(begins, self.num_tokens)


def magic_of(path: Path) -> int | None:
    """Return the number that a file begins with if it is one of such a header; else None."""
    head = read_head(path, 4)
    number = int.from_bytes(head, "little")
    return number if len(head) == 4 and number in (*LLM_C, NEMO) else None
