"""Data sets that a program passes, however they were made: readers divide what one reader gives, and lose nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import datasets
import pytest
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config.sources import SourceConfig
from mixer.errors import ConfigError, EmptySourceError
from mixer.sources.huggingface import open_stream
from mixer.sources.share import Share
from mixer.sources.streams import Stream

SOURCE = SourceConfig(name="mine")

DataSet: TypeAlias = datasets.IterableDataset
Change = tuple[str, Callable[[DataSet], DataSet]]


def whole(name: str, num_shards: int, num_rows: int = 24) -> DataSet:
    rows = {"text": [f"{name} {i}" for i in range(num_rows)], "n": [*range(num_rows)]}
    return datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=num_shards)


def generated(name: str, num_shards: int) -> DataSet:
    def rows(shards: list[int]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            yield from ({"text": f"{name} {shard}.{i}", "n": i} for i in range(6 + shard % 3))

    return DataSet.from_generator(rows, gen_kwargs={"shards": [*range(num_shards)]})


def joined(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A function that makes one row of several, whatever their files."""
    return {"text": [" and ".join(batch["text"])], "n": batch["n"][:1]}


def split_by_node(num_nodes: int) -> Change:
    return f"node 1 of {num_nodes}", lambda data: split_dataset_by_node(data, 1, num_nodes)


ALONE: list[Change] = [
    ("take 7", lambda data: data.take(7)),
    ("skip 7", lambda data: data.skip(7)),
    split_by_node(2),
    ("filter by place", lambda data: data.filter(lambda _, i: i % 5 != 0, with_indices=True)),
    ("map by place", lambda data: data.map(lambda row, i: {"text": f"{row['text']}@{i}"}, with_indices=True)),
    ("map joined", lambda data: data.map(joined, batched=True, batch_size=5, remove_columns=["text", "n"])),
    ("interleave", lambda data: datasets.interleave_datasets([data, whole("b", 6, 9)])),
    ("draw", lambda data: datasets.interleave_datasets([data, whole("b", 6)], probabilities=[0.7, 0.3], seed=1)),
]
numbers = st.integers(1, 30)
changes: st.SearchStrategy[Change] = st.one_of(
    numbers.map(lambda n: (f"take {n}", lambda data: data.take(n))),
    numbers.map(lambda n: (f"skip {n}", lambda data: data.skip(n))),
    st.integers(2, 4).map(lambda n: (f"shard 0 of {n}", lambda data: data.shard(min(n, data.num_shards), 0))),
    st.just(split_by_node(3)),
    st.just(("repeat", lambda data: data.repeat(2))),
    st.just(("filter", lambda data: data.filter(lambda row: row["n"] % 3 != 0))),
    st.sampled_from(ALONE[2:6]),
    st.just(("select", lambda data: data.select_columns(["text", "n"]))),
    st.just(("rename", lambda data: data.rename_column("n", "m").rename_column("m", "n"))),
)
joins: st.SearchStrategy[tuple[str, Callable[[list[DataSet]], DataSet]]] = st.one_of(
    st.just(("concatenate", datasets.concatenate_datasets)),
    st.sampled_from(["first_exhausted", "all_exhausted"]).map(
        lambda how: (f"interleave {how}", lambda both: datasets.interleave_datasets(both, stopping_strategy=how))
    ),
    st.integers(0, 5).map(
        lambda seed: (
            f"draw {seed}",
            lambda both: datasets.interleave_datasets(both, probabilities=[0.7, 0.3], seed=seed),
        )
    ),
)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[list[str], DataSet]:
    """Compositions of up to four wrappers, also under and over a join of two data sets."""
    makers = st.sampled_from([whole, generated])
    steps: list[str] = []

    def changed(data: DataSet, most: int) -> DataSet:
        for name, change in draw(st.lists(changes, max_size=most)):
            is_split = data._distributed is not None
            if is_split and (name.startswith(("node", "shard"))):
                continue  # `datasets` does not take these twice
            steps.append(name)
            data = change(data)
        return data

    def made(name: str) -> DataSet:
        maker, num_shards = draw(makers), draw(st.sampled_from([6, 12, 4, 1]))
        steps.append(f"{maker.__name__} {num_shards}")
        return maker(name, num_shards)

    if draw(st.booleans()):
        both = [made("a"), made("b")]
        cut = draw(st.sampled_from([None, "take", "skip"]))
        if cut is not None:
            both[0] = getattr(both[0], cut)(5)
            steps.append(f"{cut} 5 of a")
        name, join = draw(joins)
        steps.append(name)
        return steps, changed(join(both), 2)
    return steps, changed(made("a"), 4)


def documents(data: DataSet, reader: int = 0, num_readers: int = 1) -> list[str]:
    stream: Stream[list[str]] = open_stream(SOURCE, dataset=data, share=Share(reader=reader, num_readers=num_readers))
    found: list[str] = []
    try:
        while group := stream.next_group():
            found += group
    except EmptySourceError:
        pass
    return found


@settings(max_examples=60)
@given(data_sets(), st.sampled_from([2, 3, 5]))
def test_readers_divide_exactly_what_one_reader_gives(made: tuple[list[str], DataSet], num_readers: int) -> None:
    assert_divided(made[1], num_readers)


@pytest.mark.parametrize("num_readers", [2, 3])
@pytest.mark.parametrize("make", [whole, generated])
@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in ALONE])
def test_each_wrapper_that_looks_across_files_is_divided_by_document(
    change: Callable[[DataSet], DataSet], make: Callable[..., DataSet], num_readers: int
) -> None:
    assert_divided(change(make("a", 6)), num_readers)


def assert_divided(data: DataSet, num_readers: int) -> None:
    one = documents(data)
    assert one == [row["text"] for row in data]
    shares = [documents(data, reader, num_readers) for reader in range(num_readers)]
    assert Counter(text for share in shares for text in share) == Counter(one)


@pytest.mark.parametrize("num_readers", [2, 3, 4])
@pytest.mark.parametrize("make", [whole, generated])
def test_what_is_kept_for_evaluation_is_not_trained_on(make: Callable[..., DataSet], num_readers: int) -> None:
    data = make("a", 12)
    kept, trained_on = (
        {text for reader in range(num_readers) for text in documents(part, reader, num_readers)}
        for part in (data.take(7), data.skip(7))
    )
    assert len(kept) == 7
    assert not kept & trained_on
    assert kept | trained_on == {row["text"] for row in data}


def test_plain_files_and_shards_are_still_dealt_out_whole() -> None:
    for data in (whole("a", 4), generated("a", 4), whole("a", 4).select_columns(["text"])):
        stream = open_stream(SOURCE, dataset=data, share=Share(reader=1, num_readers=2))
        while stream.next_group():
            pass
        assert stream.num_other_readers == 0


def test_a_data_set_that_draws_without_a_seed_is_refused() -> None:
    both = [whole("a", 1), whole("b", 1)]
    with pytest.raises(ConfigError, match=r"source mine: the data set was interleaved with probabilities but no seed"):
        open_stream(SOURCE, dataset=datasets.interleave_datasets(both, probabilities=[0.5, 0.5]).take(3))
    assert documents(datasets.interleave_datasets(both, probabilities=[0.5, 0.5], seed=2**63))
