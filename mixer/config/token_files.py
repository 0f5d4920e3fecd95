"""Whether what a run asks for can be had of token files, which are read as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixer.config.curriculum import Curriculum


def token_file_problems(curriculum: Curriculum) -> Iterator[str]:
    """Yield a sentence for each setting that token files rule out."""
    named = [source.name for source in curriculum.sources if source.token_files is not None]
    if not named:
        return
    if curriculum.holdout:
        yield (
            f"holdout: source {named[0]} is of token files, of which no document is held out; set `holdout: 0`, or "
            "prepare it from its text"
        )
    if curriculum.probes is not None:
        yield f"probes: source {named[0]} is of token files, which have no held-out rows; take `probes` out"
    if curriculum.tokenizer is not None and curriculum.tokenizer.train_vocab_size is not None:
        yield (
            f"tokenizer: one that is trained is not that of the token files of source {named[0]}; give its file, or "
            "`{vocab_size: N, separator_id: M}`"
        )
    if curriculum.prepared is None:
        return
    if curriculum.tokenizer is not None and curriculum.tokenizer.vocab_size is not None:
        yield "tokenizer: rows that are prepared from text need its file, not a vocab_size and separator_id alone"


def streamed_beside_token_files(curriculum: Curriculum) -> list[str]:
    """Return the sources that would be streamed in a run that reads token files, too; of these two none can be mixed.

    ``mixer prepare`` makes rows of them that can.
    """
    if curriculum.prepared is not None or not any(source.token_files for source in curriculum.sources):
        return []
    return [source.name for source in curriculum.sources if source.token_files is None]


def beside_token_files(streamed: list[str]) -> str:
    """Return the sentence that refuses these sources."""
    return (
        f"source {', '.join(streamed)}: streamed, beside sources of token files; streams cannot be mixed with what is "
        "read in any order: run `mixer prepare` and name its folder, as in `prepared: FOLDER`"
    )
