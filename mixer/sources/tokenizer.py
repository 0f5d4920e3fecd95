"""Text to token ids and back: what rows are made with, whichever library encodes.

Special tokens in the text are text: a document that spells out ``<|endoftext|>`` cannot forge a separator.
"""

from __future__ import annotations

import array
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from mixer.config.problems import suggestion
from mixer.errors import TokenizerError
from mixer.sources.encoders import Encoder, HuggingFaceEncoder, encoder_of
from mixer.types import TokenArray

if TYPE_CHECKING:
    from mixer.sources.chat import ChatText
    from mixer.sources.encoders import Spans

FORMAT = "curriculum-mixer tokenizer 1"


@dataclass(frozen=True)
class Companion:
    """What lies beside a vocabulary: in ``tokenizer_config.json``, or in the curriculum.

    Attributes:
        bos: token before each document; None for none.
        chat_templates: Jinja templates by name; the first one is called ``default``.
        special_tokens: by their parts, as templates name them: ``bos_token``, ``eos_token``.
    """

    bos: str | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)


class TextTokenizer:
    """Encodes documents and decodes rows; two with one ``fingerprint`` encode alike."""

    def __init__(self, tokenizer: Tokenizer | Encoder, separator: str, companion: Companion | None = None) -> None:
        """Take a tokenizer over.

        Args:
            tokenizer: of the library `tokenizers`, or another library's.
            separator: token after each document.
            companion: what lies beside it; None for a plain `tokenizers` file.

        Raises:
            TokenizerError: a separator or BOS token that it does not know, or that text may become.
        """
        self._encoder: Encoder = HuggingFaceEncoder(tokenizer) if isinstance(tokenizer, Tokenizer) else tokenizer
        self.companion = companion or Companion()
        self._is_plain = companion is None and isinstance(self._encoder, HuggingFaceEncoder)
        self.separator = separator
        self.separator_id = self._special_id("separator", separator)
        self.bos_id = None if self.companion.bos is None else self._special_id("bos", self.companion.bos)
        self.vocab_size = self._encoder.vocab_size
        named = "" if self._is_plain else json.dumps([separator, self.companion.bos])  # else the config has all
        self.fingerprint = hashlib.blake2b((self._encoder.to_json() + named).encode(), digest_size=16).hexdigest()

    def _special_id(self, what: str, token: str) -> int:
        found = self._encoder.token_id(token)
        special = self._encoder.special_tokens
        listing = f"special tokens: {', '.join(special) or 'none'}; name one of them as tokenizer.{what}"
        if found is None:
            raise TokenizerError(
                f"the {what} {token!r} is not in the vocabulary{suggestion(token, special)}; {listing}"
            )
        if not self._is_plain and found in next(iter(self._encoder.encode([token]))):
            raise TokenizerError(
                f"the {what} {token!r} is text to this tokenizer, so documents could forge it; {listing}"
            )
        return int(found)

    def to_json(self) -> str:
        """Return the text of a file from which ``read_tokenizer`` makes an equal one.

        It is a `tokenizers` file where that holds all there is to it.
        """
        text = self._encoder.to_json()
        if self._is_plain:
            return text
        return json.dumps({"format": FORMAT, "encoder": text, "companion": asdict(self.companion)})

    @property
    def tokenizers_file(self) -> str | None:
        """The text of a `tokenizers` file that encodes alike; None if another library encodes."""
        return self._encoder.to_json() if isinstance(self._encoder, HuggingFaceEncoder) else None

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is none."""
        return self._encoder.token_id(token)

    def encode(self, texts: Sequence[str]) -> list[TokenArray]:
        """Return the token ids of each document, without a separator, uint32 [number of tokens] each."""
        begin = [] if self.bos_id is None else [self.bos_id]
        return [np.array([*begin, *ids] if begin else ids, dtype=np.uint32) for ids in self._encoder.encode(texts)]

    def encode_joined(self, texts: Sequence[str]) -> TokenArray:
        """Return the token ids of all documents in one array, a separator after each, uint32 [tokens + documents].

        Half the time of making an array of each text beside encoding them.
        """
        ids = array.array("I")
        for found in self._encoder.encode(texts):
            if self.bos_id is not None:
                ids.append(self.bos_id)
            ids.fromlist(found)
            ids.append(self.separator_id)
        return np.frombuffer(ids, dtype=np.uint32)

    @cached_property
    def controls(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The special tokens of chat templates, and those of them that the tokenizer makes of text, too."""
        tokens = [token for token in self._encoder.control_tokens if token]
        found = zip(tokens, self._encoder.encode(tokens), strict=True)
        return tuple(tokens), tuple(token for token, ids in found if self._encoder.token_id(token) in ids)

    def encode_with_controls(self, texts: Sequence[ChatText]) -> list[tuple[list[int], Spans]]:
        """Return the ids of each rendered conversation, and what part of it each stands for; no BOS, no separator."""
        return self._encoder.encode_with_controls(texts, [text.controls for text in texts])

    def decode(self, ids: Sequence[int] | TokenArray) -> str:
        """Return the text of token ids, separators included."""
        return self._encoder.decode([int(i) for i in ids])


def tokenizer_of(text: str, separator: str) -> TextTokenizer:
    """Return the tokenizer of the text that ``TextTokenizer.to_json`` gave, or that of a `tokenizers` file.

    Raises:
        TokenizerError: text that is neither, or that does not have the separator.
        MissingDependencyError: its library is not installed.
    """
    try:
        data: Any = json.loads(text) if text.lstrip().startswith('{"format"') else {}
    except ValueError:
        data = {}
    if data.get("format") != FORMAT:
        encoder = encoder_of(text)
        return TextTokenizer(encoder, separator, None if isinstance(encoder, HuggingFaceEncoder) else Companion())
    try:
        encoder, companion = encoder_of(data["encoder"]), Companion(**data["companion"])
    except (KeyError, TypeError) as error:
        raise TokenizerError(f"not a tokenizer that curriculum-mixer wrote: {error!r}") from error
    return TextTokenizer(encoder, separator, companion)


class KnownVocabulary(TextTokenizer):
    """What is known of token ids that were made elsewhere: how many there are, and which ends a document."""

    def __init__(self, vocab_size: int, separator_id: int) -> None:
        """Take numbers that the config has checked."""
        self.separator = f"<{separator_id}>"
        self.separator_id = separator_id
        self.companion, self.bos_id = Companion(), None
        self.vocab_size = vocab_size
        self.fingerprint = hashlib.blake2b(f"{vocab_size} {separator_id}".encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Raise TokenizerError: there is nothing to write."""
        raise self._nothing_known()

    def decode(self, ids: Sequence[int] | TokenArray) -> str:
        """Raise TokenizerError."""
        raise self._nothing_known()

    def encode(self, texts: Sequence[str]) -> list[TokenArray]:
        """Raise TokenizerError."""
        raise self._nothing_known()

    def encode_joined(self, texts: Sequence[str]) -> TokenArray:
        """Raise TokenizerError."""
        raise self._nothing_known()

    def token_id(self, token: str) -> int | None:
        """Raise TokenizerError."""
        raise self._nothing_known()

    @property
    def tokenizers_file(self) -> str | None:
        """None: there is none."""
        return None

    def _nothing_known(self) -> TokenizerError:
        return TokenizerError(
            f"tokenizer: only vocab_size {self.vocab_size} and separator_id {self.separator_id} are given, so that no "
            "text can be encoded or decoded; give the tokenizer's file"
        )


def read_tokenizer(path: Path, separator: str) -> TextTokenizer:
    """Return the tokenizer of a file as ``to_json`` gives it; raise TokenizerError for one that cannot be used."""
    try:
        return tokenizer_of(text_of(path), separator)
    except TokenizerError as error:
        if str(error).startswith("not "):
            raise TokenizerError(f"tokenizer.file: {path} is {error}") from error
        raise


def read_file(path: Path) -> Tokenizer:
    """Return the library's tokenizer of a `tokenizers` file; raise TokenizerError for one that cannot be used."""
    text = text_of(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(
            f"tokenizer.file: {path} is not a `tokenizers` JSON file ({error}); save one with Tokenizer.save"
        ) from error


def text_of(path: Path) -> str:
    """Return the text of a file; raise TokenizerError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TokenizerError(
            f"tokenizer.file: no such file: {path}; paths are relative to the curriculum's folder"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"tokenizer.file: {path} cannot be read: {error}") from error
