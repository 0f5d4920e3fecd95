"""One corpus in the format of each peer, written by it, and read by its loader and by ours: batches of 16 x 1025 ids.

A peer is driven as its documents say, shuffled, by a PyTorch DataLoader without workers, where it has none of its own.
Only ours hands over inputs and labels apart, as int64; the others stop at what they read, which is less work.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.rows import BATCH, ROW, VOCAB, arrow_rows

Batches = Iterator[Any]
TOKENS = 32 << 20  # 64 MB of uint16
STEPS = 200_000


def corpus(folder: Path) -> tuple[Any, Any]:
    """Return the corpus, uint16 [TOKENS], documents of 50 to 1,000 ids that each end with a 0, and their borders."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 1000, TOKENS // 400)
    borders = np.concatenate([[0], np.cumsum(lengths)])
    borders = np.append(borders[borders < TOKENS], TOKENS)
    path = folder / "formats" / "bare.bin"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = rng.integers(1, VOCAB, TOKENS, dtype=np.uint16)
        ids[borders[1:] - 1] = 0
        ids.tofile(path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return np.memmap(path, np.uint16, "r"), borders


def made(folder: Path, name: str, write: Callable[[Path, Any, Any], None]) -> Path:
    """Return the folder of a format, written when it is first asked for."""
    place = folder / "formats" / name
    if not (place / "made").exists():
        place.mkdir(parents=True, exist_ok=True)
        write(place, *corpus(folder))
        (place / "made").touch()
    return place


def ours(path: str, **tokens: Any) -> Callable[[Path], Batches]:
    """Return what makes our data set over the files of a format."""

    def batches(folder: Path) -> Batches:
        return our_dataset({"tokens": {"path": str(folder / "formats" / path), "separator": "present", **tokens}})

    return batches


def ours_prepared(folder: Path, dtype: str = "uint16") -> Batches:
    """Our own prepared rows of the same corpus."""
    out = folder / "formats" / f"prepared-{dtype}"
    if not (out / "prepared.json").exists():
        ids, _ = corpus(folder)
        arrow_rows(out, {"web": ids[: TOKENS // ROW * ROW].reshape(-1, ROW).astype(dtype)})
    return our_dataset({}, prepared=str(out), tokenizer=None)


def our_dataset(source: dict[str, Any], **fields: Any) -> Batches:
    """Return the batches of one source."""
    from mixer import Curriculum, MixtureDataset

    given: dict[str, Any] = {
        "total_steps": STEPS,
        "batch_rows": BATCH,
        "sequence_length": ROW - 1,
        "policy": {"name": "static", "weights": {"web": 1.0}},
        "tokenizer": {"vocab_size": VOCAB, "separator_id": 0},
        "sources": [{"name": "web", **source}],
    }
    return iter(MixtureDataset(Curriculum(**{**given, **fields})))


def loaded(dataset: Any, **options: Any) -> Batches:
    """Return the batches of a map-style data set, without end."""
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(0)
    while True:
        yield from DataLoader(dataset, batch_size=BATCH, shuffle=True, generator=generator, drop_last=True, **options)


def write_megatron(place: Path, ids: Any, borders: Any) -> None:
    """Write one pair with Megatron's builder."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(place / "web.bin"), dtype=np.uint16)
    for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        builder.add_document(torch.from_numpy(ids[begin:end].astype(np.int32)), [end - begin])
    builder.finalize(str(place / "web.idx"))


def megatron(folder: Path) -> Batches:
    """Megatron-core's GPTDataset, which makes an index of samples and a shuffled order, read by a DataLoader."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    place = made(folder, "megatron", write_megatron)
    tokenizer = types.SimpleNamespace(
        eod=0, pad=0, vocab_size=VOCAB, unique_identifiers={"class": "ids"}, _pad_token_id=0
    )
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=ROW - 1,
        blend=([str(place / "web")], None),
        split="1,0,0",
        path_to_cache=str(place / "cache"),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    train, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [STEPS * BATCH // 10, 0, 0], lambda: True, config).build()
    return loaded(train)


def write_datatrove(place: Path, ids: Any, borders: Any) -> None:
    """Write one ``.ds`` with datatrove's file."""
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    file = TokenizedFile(str(place), "web.ds", tokenizer_name_or_path="none", save_final_metadata=True, token_size=2)
    file.write_bytes(ids.tobytes(), borders[1:].tolist())
    file.close()


def datatrove(folder: Path) -> Batches:
    """Datatrove's folder data set, shuffled."""
    from datatrove.utils.dataset import DatatroveFolderDataset

    place = made(folder, "datatrove", write_datatrove)
    return loaded(
        DatatroveFolderDataset(str(place), seq_len=ROW - 1, token_size=2, shuffle=True, filename_pattern="*.ds")
    )


def write_olmo(place: Path, ids: Any, borders: Any) -> None:
    """Write a bare ``.npy`` as dolma's writer lays it out, and its table."""
    import gzip

    ids.tofile(place / "web.npy")
    with gzip.open(place / "web.csv.gz", "wt") as file:
        for number, (begin, end) in enumerate(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)):
            file.write(f"{begin},{end},{number},web,{number}\n")


def olmo(folder: Path) -> Batches:
    """OLMo-core's fixed-length data set, read by a DataLoader."""
    from olmo_core.data import NumpyFSLDataset

    place = made(folder, "olmo", write_olmo)
    return loaded(
        NumpyFSLDataset(
            str(place / "web.npy"),
            sequence_length=ROW,
            pad_token_id=0,
            eos_token_id=0,
            vocab_size=VOCAB,
            dtype=np.uint16,
        )
    )


def write_litdata(place: Path, ids: Any, borders: Any) -> None:
    """Write chunks of 64 MB with LitData's writer."""
    import torch
    from litdata import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(place), chunk_bytes=64 << 20, item_loader=TokensLoader(block_size=ROW))
    for number, (begin, end) in enumerate(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)):
        writer.add_item(number, torch.from_numpy(ids[begin:end].copy()))
    writer.done()
    writer.merge()


def litdata(folder: Path) -> Batches:
    """LitData's streaming data set with TokensLoader, shuffled, in its own loader."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    place = made(folder, "litdata", write_litdata)
    dataset = StreamingDataset(str(place), item_loader=TokensLoader(block_size=ROW), shuffle=True, seed=0)
    while True:
        yield from StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)


def no_pictures() -> None:
    """Stand in for torchvision, which mosaicml-streaming imports for pictures."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module: Any = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.VisionDataset, module.to_tensor = object, None
        sys.modules[name] = module


def write_mds(place: Path, ids: Any, borders: Any) -> None:
    """Write shards of 64 MB, a sample of 1,025 ids each, as llm-foundry packs them."""
    no_pictures()
    from streaming import MDSWriter

    with MDSWriter(out=str(place / "data"), columns={"tokens": "ndarray:int32"}, size_limit=64 << 20) as writer:
        for row in ids[: TOKENS // ROW * ROW].reshape(-1, ROW).astype(np.int32):
            writer.write({"tokens": row})


def mds(folder: Path) -> Batches:
    """mosaicml-streaming's data set, shuffled, in a DataLoader."""
    place = made(folder, "mds", write_mds)
    no_pictures()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(place / "data"), batch_size=BATCH, shuffle=True)
    while True:
        yield from DataLoader(dataset, batch_size=BATCH, num_workers=0)


def nanogpt(folder: Path) -> Batches:
    """Windows at random places of a memory map, copied to int64 and stacked: what nanoGPT's training script does."""
    import torch

    ids, _ = corpus(folder)
    path = str(ids.filename)
    while True:
        ids = np.memmap(path, np.uint16, "r")  # anew for each batch, as there
        places = torch.randint(len(ids) - ROW, (BATCH,)).tolist()
        windows = [torch.from_numpy(ids[place : place + ROW].astype(np.int64)) for place in places]
        yield torch.stack([each[:-1] for each in windows]), torch.stack([each[1:] for each in windows])


PREPARED, WIDE = "ours: prepared rows", "ours: prepared rows of uint32"
CONTENDERS: dict[str, Callable[[Path], Batches]] = {  # a peer first: it writes what ours reads after it
    PREPARED: ours_prepared,
    WIDE: lambda folder: ours_prepared(folder, "uint32"),
    "megatron: GPTDataset": megatron,
    "megatron: ours": ours("megatron"),
    "datatrove: DatatroveFolderDataset": datatrove,
    "datatrove: ours": ours("datatrove"),
    "olmo: NumpyFSLDataset": olmo,
    "olmo: ours": ours("olmo"),
    "litdata: LitData": litdata,
    "litdata: ours": ours("litdata"),
    "mds: mosaicml-streaming": mds,
    "mds: ours": ours("mds/data"),
    "bare: nanoGPT's loop": nanogpt,
    "bare: ours": ours("bare.bin", format="bare", dtype="uint16"),
}
