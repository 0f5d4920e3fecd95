"""Text to token ids: a `tokenizers` file, or a vocabulary trained on the run's own sources.

What the file says about truncation, padding and special tokens in the text is switched off: a document comes back
whole, and a document that spells out ``<|endoftext|>`` cannot forge a separator.
"""

from __future__ import annotations

import array
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from mixer.config.problems import suggestion
from mixer.errors import TokenizerError
from mixer.types import TokenArray

if TYPE_CHECKING:
    pass

_PARENT_HAS_THREADS = False  # of `tokenizers`, which live in the process that first encoded or trained


def _encode_alone_in_child() -> None:
    """The threads are not in a forked child, and where TOKENIZERS_PARALLELISM is on it would wait for them for ever."""
    if _PARENT_HAS_THREADS:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


def note_threads() -> None:
    """Say that this process encodes or trains, for which the library starts threads."""
    global _PARENT_HAS_THREADS  # the threads are the process's too
    _PARENT_HAS_THREADS = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_encode_alone_in_child)


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
        note_threads()
        return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    def decode(self, ids: Sequence[int] | TokenArray) -> str:
        """Return the text of token ids, separators included."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


class KnownVocabulary(TextTokenizer):
    """What is known of token ids that were made elsewhere: how many there are, and which ends a document."""

    def __init__(self, vocab_size: int, separator_id: int) -> None:
        """Take numbers that the config has checked."""
        self.separator = f"<{separator_id}>"
        self.separator_id = separator_id
        self.vocab_size = vocab_size
        self.fingerprint = hashlib.blake2b(f"{vocab_size} {separator_id}".encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Raise TokenizerError: there is nothing to write."""
        raise self._nothing_known()

    def decode(self, ids: Sequence[int] | TokenArray) -> str:
        """Raise TokenizerError."""
        raise self._nothing_known()

    def _encodings(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        raise self._nothing_known()

    def _nothing_known(self) -> TokenizerError:
        return TokenizerError(
            f"tokenizer: only vocab_size {self.vocab_size} and separator_id {self.separator_id} are given, so that no "
            "text can be encoded or decoded; give the tokenizer's file"
        )


def read_tokenizer(path: Path, separator: str) -> TextTokenizer:
    """Return the tokenizer of a `tokenizers` JSON file; raise TokenizerError for one that cannot be used."""
    return TextTokenizer(read_file(path), separator)


def read_file(path: Path) -> Tokenizer:
    """Return the library's tokenizer of a JSON file; raise TokenizerError for one that cannot be used."""
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
