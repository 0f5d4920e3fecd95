"""Text to token ids: a `tokenizers` file, or a byte-level BPE trained on the run's own sources.

What the file says about truncation, padding and special tokens in the text is switched off: a document comes back
whole, and a document that spells out ``<|endoftext|>`` cannot forge a separator.
"""

from __future__ import annotations

import array
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mixer.cache import cache_root, written_whole
from mixer.config import Curriculum
from mixer.config_errors import suggestion
from mixer.errors import TokenizerError
from mixer.types import TokenArray

if TYPE_CHECKING:
    from datasets import IterableDataset

_PARENT_HAS_THREADS = False  # of `tokenizers`, which live in the process that first encoded or trained


def _encode_alone_in_child() -> None:
    """The threads are not in a forked child, and where TOKENIZERS_PARALLELISM is on it would wait for them for ever."""
    if _PARENT_HAS_THREADS:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _note_threads() -> None:
    global _PARENT_HAS_THREADS  # the threads are the process's too
    _PARENT_HAS_THREADS = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_encode_alone_in_child)

SAMPLE_CHARACTERS = 2_000_000  # per source: 16 sources train in about half a minute, and more text moves few merges


class TextTokenizer:
    """Encodes documents and decodes rows; two with one ``fingerprint`` encode alike."""

    def __init__(self, tokenizer: Tokenizer, separator: str) -> None:
        """Take a tokenizer over; raise TokenizerError if it does not know the separator."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        separator_id = tokenizer.token_to_id(separator)
        if separator_id is None:
            special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
            raise TokenizerError(
                f"the separator {separator!r} is not in the vocabulary{suggestion(separator, special)}; "
                f"special tokens: {', '.join(special) or 'none'}; name one of them as tokenizer.separator"
            )
        self._tokenizer = tokenizer
        self.separator = separator
        self.separator_id = int(separator_id)
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())  # ids may have gaps
        self.fingerprint = hashlib.blake2b(tokenizer.to_str().encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Return the text of a `tokenizers` file from which ``read_tokenizer`` makes an equal one."""
        return str(self._tokenizer.to_str())

    def encode(self, texts: Sequence[str]) -> list[TokenArray]:
        """Return the token ids of each text, without a separator, uint32 [number of tokens] each."""
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in self._encodings(texts)]

    def encode_joined(self, texts: Sequence[str]) -> TokenArray:
        """Return the token ids of all texts in one array, a separator after each, uint32 [tokens + number of texts].

        Half the time of making an array of each text beside encoding them.
        """
        ids = array.array("I")
        for encoding in self._encodings(texts):
            ids.fromlist(encoding.ids)
            ids.append(self.separator_id)
        return np.frombuffer(ids, dtype=np.uint32)

    def _encodings(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        _note_threads()
        return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    def decode(self, ids: Sequence[int] | TokenArray) -> str:
        """Return the text of token ids, separators included."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


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
        TokenizerError: no ``tokenizer:``, an unreadable file, an unknown separator, or a vocabulary above the model's.
        SourceError: a source that cannot be read for training.
    """
    config = curriculum.tokenizer
    if config is None:
        raise TokenizerError("the curriculum has no `tokenizer:`; give a file, or a train_vocab_size to train one")
    if config.file is not None:
        path = curriculum.resolve(config.file)
        tokenizer = _read(path)
        remedy = f"raise vocab_size to at least {{}}, or use a smaller tokenizer than {path}"
    else:
        assert config.train_vocab_size is not None  # TokenizerConfig sees to it
        texts = sample_texts(curriculum, streams)
        folder = cache_root() / "tokenizers" if cache_dir is None else cache_dir
        tokenizer = _trained(texts, config.train_vocab_size, config.separator, folder)
        remedy = f"raise vocab_size to at least {{}}, or lower tokenizer.train_vocab_size to {curriculum.vocab_size}"
    wrapped = TextTokenizer(tokenizer, config.separator)
    if curriculum.vocab_size is not None and wrapped.vocab_size > curriculum.vocab_size:
        raise TokenizerError(
            f"the tokenizer needs a vocabulary of {wrapped.vocab_size}, but the model's vocab_size is "
            f"{curriculum.vocab_size}; {remedy.format(wrapped.vocab_size)}"
        )
    return wrapped


def read_tokenizer(path: Path, separator: str) -> TextTokenizer:
    """Return the tokenizer of a `tokenizers` JSON file; raise TokenizerError for one that cannot be used."""
    return TextTokenizer(_read(path), separator)


def sample_texts(curriculum: Curriculum, streams: Mapping[str, IterableDataset] | None = None) -> list[str]:
    """Return the beginning of every source of text in declared order, at most about 2 million characters of each.

    What is held out is left out here too.
    """
    from mixer.sources.huggingface import open_stream  # `datasets` takes seconds to import; a file needs none of it
    from mixer.sources.streams import Share

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
    _note_threads()
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _read(path: Path) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TokenizerError(
            f"tokenizer.file: no such file: {path}; paths are relative to the curriculum's folder"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"tokenizer.file: {path} cannot be read: {error}") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"tokenizer.file: {path} is not a `tokenizers` JSON file ({error}); save one with Tokenizer.save"
        ) from error


def _trained(texts: list[str], vocab_size: int, separator: str, folder: Path) -> Tokenizer:
    settings = json.dumps(["byte-level BPE", tokenizers.__version__, vocab_size, separator])
    digest = hashlib.blake2b(digest_size=16)
    for text in itertools.chain([settings], texts):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))  # or ["ab"] and ["a", "b"] would share a file
        digest.update(data)
    path = folder / f"{digest.hexdigest()}.json"
    if not path.exists():
        with written_whole(path) as file:
            file.write(train(texts, vocab_size, separator).to_str())
    return _read(path)
