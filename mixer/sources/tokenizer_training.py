"""The tokenizer of a run: the file that the curriculum names, or one trained on its sources."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mixer.config.curriculum import Curriculum
from mixer.config.sources import DEFAULT_SEPARATOR, TokenizerConfig
from mixer.errors import TokenizerError
from mixer.sources.encoders import note_threads
from mixer.sources.harris import train_harris
from mixer.sources.tokenizer import Companion, KnownVocabulary, TextTokenizer, read_file
from mixer.sources.tokenizer_files import find_tokenizer
from mixer.system.files import cache_root, written_whole

if TYPE_CHECKING:
    from datasets import IterableDataset


SAMPLE_CHARACTERS = 2_000_000  # per source: 16 sources train in about half a minute, and more text moves few merges


def load_tokenizer(
    curriculum: Curriculum,
    streams: Mapping[str, IterableDataset] | None = None,
    cache_dir: Path | None = None,
) -> TextTokenizer:
    """Return the tokenizer that the curriculum names, or the one trained on its sources.

    A trained one is kept in ``cache_dir`` (default: ``tokenizers`` in the cache) under a digest of all that shaped it,
    so that the same text and settings never train twice and other text never finds a stale one.

    Args:
        curriculum: the run; its ``tokenizer``, ``vocab_size`` and ``sources`` count here.
        streams: data sets by source name, for sources that the program passes instead of naming files.
        cache_dir: another folder for trained tokenizers.

    Raises:
        TokenizerError: no ``tokenizer:``, an unreadable file, a separator that is unknown or that documents can
            contain, or a vocabulary above the model's.
        SourceError: a source that cannot be read for training.
    """
    config = curriculum.tokenizer
    if config is None:
        raise TokenizerError(
            "the curriculum has no `tokenizer:`; give a file, folder or hub id, or a train_vocab_size to train one"
        )
    if config.vocab_size is not None and config.separator_id is not None:
        return _known_vocabulary(curriculum, config.vocab_size, config.separator_id)
    if config.train_vocab_size is None:
        wrapped, name = find_tokenizer(curriculum)
        remedy = f"raise vocab_size to at least {{}}, or use a smaller tokenizer than {name}"
    else:
        chats = [source.name for source in curriculum.read_sources if source.renders_chat]
        if chats:
            raise TokenizerError(
                f"source {chats[0]}: a chat template needs a tokenizer that has its special tokens, not one that is "
                "trained on the sources; name yours under `tokenizer:`, or set chat: andrea"
            )
        separator = config.separator or DEFAULT_SEPARATOR
        _check_separator(separator)
        texts = sample_texts(curriculum, streams)
        folder = cache_root() / "tokenizers" if cache_dir is None else cache_dir
        companion = Companion(config.bos) if config.bos else None
        wrapped = TextTokenizer(_trained(texts, config, folder), separator, companion)
        remedy = f"raise vocab_size to at least {{}}, or lower tokenizer.train_vocab_size to {curriculum.vocab_size}"
    if curriculum.vocab_size is not None and wrapped.vocab_size > curriculum.vocab_size:
        raise TokenizerError(
            f"the tokenizer needs a vocabulary of {wrapped.vocab_size}, but the model's vocab_size is "
            f"{curriculum.vocab_size}; {remedy.format(wrapped.vocab_size)}"
        )
    return wrapped


def _known_vocabulary(curriculum: Curriculum, vocab_size: int, separator_id: int) -> TextTokenizer:
    of_text = [s.name for s in curriculum.read_sources if s.token_column is None]
    if of_text:
        raise TokenizerError(
            f"tokenizer: source {', '.join(of_text)}: text needs a tokenizer's file; vocab_size and separator_id do "
            "for sources that hold token ids already"
        )
    if curriculum.vocab_size is not None and vocab_size > curriculum.vocab_size:
        raise TokenizerError(
            f"the tokenizer's vocab_size is {vocab_size}, but the model's is {curriculum.vocab_size}; raise vocab_size "
            f"to at least {vocab_size}"
        )
    return KnownVocabulary(vocab_size, separator_id)


def sample_texts(curriculum: Curriculum, streams: Mapping[str, IterableDataset] | None = None) -> list[str]:
    """Return the beginning of every source of text in declared order, at most about 2 million characters of each.

    What is held out is left out here too.
    """
    from mixer.sources.huggingface import open_stream  # `datasets` takes seconds to import; a file needs none of it
    from mixer.sources.share import Share

    texts: list[str] = []
    of_text = [source for source in curriculum.sources if source.token_column is None]
    if not of_text:
        raise TokenizerError(
            "tokenizer: every source holds token ids already, so there is no text to train on; give file"
        )
    for source in of_text:
        stream = open_stream(
            source,
            resolve=curriculum.resolve,
            dataset=(streams or {}).get(source.name),
            retries=curriculum.retries,
            share=Share(holdout=curriculum.holdout),
        )
        taken = 0
        while taken < SAMPLE_CHARACTERS and len(group := stream.next_group()):
            kept = [str(text)[:SAMPLE_CHARACTERS] for text in group]
            texts += kept
            taken += sum(map(len, kept))
    return texts


def train(texts: Iterable[str], vocab_size: int, separator: str) -> Tokenizer:
    """Return a byte-level BPE of at most ``vocab_size`` tokens: the separator, 256 bytes, then merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[separator],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    note_threads()
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _check_separator(separator: str) -> None:
    """Raise TokenizerError if training could make the separator a token of text too, which a document then forges."""
    if len(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(separator)) < 2:
        raise TokenizerError(
            f"tokenizer.separator {separator!r} could be a word of a document, which would then end there; "
            "take one of letters between signs, such as <|endoftext|>"
        )


def _trained(texts: list[str], config: TokenizerConfig, folder: Path) -> Tokenizer:
    assert config.train_vocab_size is not None  # TokenizerConfig sees to it
    name, training = TRAININGS[config.kind]
    separator = config.separator or DEFAULT_SEPARATOR
    settings = json.dumps([name, tokenizers.__version__, config.train_vocab_size, separator])
    digest = hashlib.blake2b(digest_size=16)
    for text in itertools.chain([settings], texts):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))  # or ["ab"] and ["a", "b"] would share a file
        digest.update(data)
    path = folder / f"{digest.hexdigest()}.json"
    if not path.exists():
        with written_whole(path) as file:
            file.write(training(texts, config.train_vocab_size, separator).to_str())
    return read_file(path)


TRAININGS: dict[str, tuple[str, Callable[[Iterable[str], int, str], Tokenizer]]] = {
    "bpe": ("byte-level BPE", train),  # the name stands for what is trained: another result needs another name
    "harris": ("Harris segments 1", train_harris),
}
