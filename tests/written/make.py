"""Writes the files beside it with the peers' own writers; the documents are those of ``tests/support/documents.py``.

    pip install --no-deps megatron-core==0.16.1 datatrove==0.10.1 dolma==1.2.1 litdata==0.2.76 mosaicml-streaming==0.13.0
    python -m tests.written.make megatron bare datatrove olmo litdata mds

Beside them it needs what they import. The writers of llm.c and NeMo Automodel are scripts: put ``dev/data/data_common.py``
of the one and ``tools/nanogpt_data_processor.py`` of the other on the path, as ``llmc_data_common`` and
``nemo_nanogpt_data_processor``.
"""

# mypy: ignore-errors

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np

from tests.support.documents import SEPARATOR, VOCAB, documents, leading, masks, samples

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


def bare() -> None:
    from llmc_data_common import write_datafile
    from nemo_nanogpt_data_processor import BinaryDataWriter

    folder = HERE / "bare"
    ids = np.concatenate(documents())
    memory = np.memmap(folder / "nanogpt.bin", dtype=np.uint16, mode="w+", shape=(len(ids),))  # as its prepare.py does
    memory[:] = ids
    memory.flush()
    for name, model, seed in [("llmc", "gpt-2", 1), ("llmc-wide", "llama-3", 2)]:
        write_datafile(str(folder / f"{name}.bin"), np.concatenate(leading(seed)).tolist(), model)
    for name, vocab, seed in [("nemo", VOCAB, 3), ("nemo-wide", 100_000, 4)]:
        writer = BinaryDataWriter(str(folder / f"{name}.bin"), SEPARATOR, vocab)
        for document in leading(seed):
            writer.write(document.tolist())
        del writer  # which ends the file


def datatrove() -> None:
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    for name, size, masked, seed in [("plain", 2, False, 0), ("masked", 2, True, 1), ("wide", 4, False, 2)]:
        file = TokenizedFile(
            str(HERE / "datatrove"),
            f"{name}.ds",
            save_loss_metadata=masked,
            tokenizer_name_or_path="gpt2",
            save_final_metadata=name != "plain",
            token_size=size,
        )
        for ids, mask in zip(documents(seed=seed), masks(seed), strict=True):
            file.write(ids.tolist(), mask if masked else None)
        file.close()


def olmo() -> None:
    root = Path(importlib.util.find_spec("dolma").origin).parent
    for name in ("dolma", "dolma.core", "dolma.tokenizer"):  # without what their __init__ imports for taggers
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(root.parent / name.replace(".", "/"))]
    from dolma.tokenizer.data_types import TokenizerOutput
    from dolma.tokenizer.memmap_writer import MemmapWriter

    for name, dtype, seed in [("part-0", np.uint16, 0), ("part-1", np.uint16, 1), ("wide", np.uint32, 2)]:
        with MemmapWriter(str(HERE / "olmo" / name), dtype=np.dtype(dtype), max_tokens=4096) as writer:
            for number, ids in enumerate(documents(seed=seed)):
                writer.write(TokenizerOutput.from_tokens(f"doc {number}", 'a "file", its\nname', number, ids.tolist()))
    for seed in (0, 1):
        np.concatenate(masks(seed)).tofile(HERE / "olmo" / f"part-{seed}.mask")


def litdata() -> None:
    import torch
    from litdata import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    for name, kind, seed in [("int32", torch.int, 0), ("uint16", torch.uint16, 1), ("numpy", np.uint32, 2)]:
        folder = HERE / "litdata" / name
        folder.mkdir(parents=True, exist_ok=True)
        writer = BinaryWriter(str(folder), chunk_bytes=400, item_loader=TokensLoader(block_size=8))
        for number, ids in enumerate(documents(seed=seed)):
            writer.add_item(number, ids.astype(kind) if name == "numpy" else torch.from_numpy(ids).to(kind))
        writer.done()
        writer.merge()


def mds() -> None:
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = types.ModuleType(name)  # imported for pictures, which are not written here
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.VisionDataset, module.to_tensor = object, None
        sys.modules[name] = module
    from streaming import MDSWriter

    kinds = {
        "int32": {"tokens": "ndarray:int32"},
        "free": {"tokens": "ndarray"},
        "beside": {"id": "int", "source": "str", "tokens": "ndarray:uint16", "zeta": "bytes"},
        "fixed": {"tokens": "ndarray:int64:16"},
        "bytes": {"input": "bytes"},
    }
    for seed, (name, columns) in enumerate(kinds.items()):
        with MDSWriter(out=str(HERE / "mds" / name), columns=columns, size_limit=600) as writer:
            for number, ids in enumerate(samples(name, seed)):
                values = {
                    "id": number,
                    "source": "x" * number,
                    "zeta": b"y" * (number % 3),
                    "input": ids.astype(np.int64).tobytes(),
                    "tokens": ids.astype({"beside": np.uint16, "fixed": np.int64}.get(name, np.int32)),
                }
                writer.write({key: values[key] for key in columns})


if __name__ == "__main__":
    for name in sys.argv[1:]:
        (HERE / name).mkdir(exist_ok=True)
        print(name)
        globals()[name]()
