"""Writes the files beside it with the peers' own writers; the documents are those of ``tests/support/documents.py``.

pip install --no-deps megatron-core==0.16.1
python -m tests.written.make megatron
"""

# mypy: ignore-errors

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.support.documents import documents

HERE = Path(__file__).parent


def megatron() -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    for name, dtype, parts in [
        ("plain", np.uint16, documents(ends=False)),
        ("ended", np.uint16, documents(seed=1)),
        ("wide", np.int32, documents(seed=2)),
    ]:
        builder = IndexedDatasetBuilder(str(HERE / "megatron" / f"{name}.bin"), dtype=dtype)
        for ids in parts:
            half = len(ids) // 2  # a document of several sequences
            pieces = [half, len(ids) - half] if half and name == "plain" else [len(ids)]
            builder.add_document(torch.from_numpy(ids.copy()), pieces)
        builder.finalize(str(HERE / "megatron" / f"{name}.idx"))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        (HERE / name).mkdir(exist_ok=True)
        globals()[name]()
