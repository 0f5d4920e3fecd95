"""Which of a source's documents a stream gives: a split of them, dealt out among readers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixer.sources.holdout import is_held_out

if TYPE_CHECKING:
    import datasets

# wrappers of `datasets` that treat each row by itself, and what they may be around
OF_EACH_ROW = frozenset({"ExamplesIterable", "ArrowExamplesIterable", "SelectColumnsIterable"})


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of a source's documents a stream gives.

    ``holdout`` is the fraction set aside and ``held_out`` whether the stream gives that part or the rest; of what is
    left, this is reader number ``reader`` of ``num_readers``.
    """

    holdout: float = 0.0
    held_out: bool = False
    reader: int = 0
    num_readers: int = 1

    @property
    def split(self) -> str:
        """The split in words, for states and messages."""
        if not self.holdout:
            return "all"
        return f"held out at {self.holdout}" if self.held_out else f"all but held out at {self.holdout}"

    def has(self, document: bytes) -> bool:
        """Whether the split has a document."""
        return is_held_out(document, self.holdout) == self.held_out


WHOLE = Share()


def is_the_sum_of_its_files(dataset: datasets.IterableDataset) -> bool:
    """Whether readers that share the files of a data set give together what one reader of all gives.

    It is so under wrappers that treat each row by itself. ``take`` and ``skip`` count rows, ``interleave_datasets`` and
    ``split_dataset_by_node`` choose among them, and the functions of ``map`` and ``filter`` may do either.
    """
    if getattr(dataset, "_distributed", None) is not None:  # `datasets` splits what is left once more
        return False
    examples = getattr(dataset, "_ex_iterable", None)  # not of tables that we read ourselves
    while examples is not None:
        if type(examples).__name__ not in OF_EACH_ROW:
            return False
        examples = getattr(examples, "ex_iterable", None)
    return True
