"""What makes token ids of text: a tokenizer of `tokenizers`, a SentencePiece model, or an encoding of tiktoken.

Each is run by the library that it was made for, so that ids are that library's. Text never becomes a special token, as
far as the library can tell the two apart: SentencePiece's user-defined symbols and a tokenizer's plain added tokens
are text to it.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer

from mixer.errors import MissingDependencyError, TokenizerError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tiktoken import Encoding

FIRST_NAME = 0x100000  # of plane 16, private use: what control tokens are called while text is encoded with them

Span = tuple[int, int]  # of characters, the second one is the first after it
Spans = Sequence[Span]

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


class Encoder(Protocol):
    """One library's tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def special_tokens(self) -> Sequence[str]:
        """The tokens that can separate documents, in the order of their ids."""

    @property
    def control_tokens(self) -> Sequence[str]:
        """The tokens that chat templates write and messages must not forge."""

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, None if there is none."""

    def encode(self, texts: Sequence[str]) -> Iterable[list[int]]:
        """Return the ids of each text, without special tokens before, after or within."""

    def encode_with_controls(self, texts: Sequence[str], controls: Sequence[Spans]) -> list[tuple[list[int], Spans]]:
        """Return the ids of each text and what each stands for, where the spans of ``controls`` are special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with special tokens spelled out."""

    def to_json(self) -> str:
        """Return the text from which ``encoder_of`` makes an equal one."""


class HuggingFaceEncoder:
    """A tokenizer of the library `tokenizers`, with truncation, padding and special tokens in text switched off."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    def __getstate__(self) -> str:
        return self.to_json()

    def __setstate__(self, state: str) -> None:
        self.__init__(Tokenizer.from_str(state))  # type: ignore[misc]  # pickled as it is, it would lose its switches

    @property
    def vocab_size(self) -> int:
        """See ``Encoder``; ids may have gaps."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def special_tokens(self) -> list[str]:
        """See ``Encoder``."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]

    @property
    def control_tokens(self) -> list[str]:
        """See ``Encoder``."""
        return [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]

    @property
    def first_special_ids(self) -> list[int]:
        """The ids that the file itself would put around a text without characters."""
        return list(self._tokenizer.encode("", add_special_tokens=True).ids)

    def token_id(self, token: str) -> int | None:
        """See ``Encoder``."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode(self, texts: Sequence[str]) -> Iterable[list[int]]:
        """See ``Encoder``."""
        note_threads()
        return (found.ids for found in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False))

    def encode_with_controls(self, texts: Sequence[str], controls: Sequence[Spans]) -> list[tuple[list[int], Spans]]:
        """See ``Encoder``; a tokenizer that knows the special tokens by other names encodes, as the library would."""
        note_threads()
        clone, names, ids = self._renamed
        named = []
        for text, spans in zip(texts, controls, strict=True):
            pieces, end = [], 0
            for start, stop in spans:
                pieces += [text[end:start], names[text[start:stop]]]
                end = stop
            named.append("".join([*pieces, text[end:]]))
        found = clone.encode_batch(named, add_special_tokens=False)
        return [([ids.get(i, i) for i in each.ids], each.offsets) for each in found]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[str, str], dict[int, int]]:
        """The tokenizer with special tokens of other names, of the same lengths; the names; and the ids by its own."""
        data = json.loads(self.to_json())
        names: dict[str, str] = {}
        for token in data["added_tokens"]:
            if token["special"]:
                names[token["content"]] = chr(FIRST_NAME + len(names)) * len(token["content"])
                token["content"] = names[token["content"]]
        data["post_processor"] = None
        clone: Any = Tokenizer.from_str(json.dumps(data))
        ids: dict[int, int] = {clone.token_to_id(token["content"]): token["id"] for token in data["added_tokens"]}
        return clone, names, ids

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Encoder``."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def to_json(self) -> str:
        """Return the text of a `tokenizers` file."""
        return str(self._tokenizer.to_str())


class SentencePieceEncoder:
    """A model of SentencePiece, run by its own library."""

    def __init__(self, model: bytes) -> None:
        """Take the bytes of a ``.model`` file; raise TokenizerError if they are none."""
        self._model = model
        self._processor = self._made()

    def __getstate__(self) -> bytes:
        return self._model

    def __setstate__(self, state: bytes) -> None:
        self.__init__(state)  # type: ignore[misc]  # the library's own object holds no state beside the model

    def _made(self) -> SentencePieceProcessor:
        try:
            from sentencepiece import SentencePieceProcessor
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "tokenizer: a SentencePiece model needs its library: pip install 'curriculum-mixer[sentencepiece]'"
            ) from error
        try:
            return SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise TokenizerError(f"not a SentencePiece model: {error}") from error

    @property
    def vocab_size(self) -> int:
        """See ``Encoder``."""
        return int(self._processor.vocab_size())

    @property
    def special_tokens(self) -> list[str]:
        """See ``Encoder``; these are the control symbols."""
        found = range(self.vocab_size)
        return [str(self._processor.id_to_piece(i)) for i in found if self._processor.is_control(i)]

    @property
    def control_tokens(self) -> list[str]:
        """See ``Encoder``."""
        return self.special_tokens

    @property
    def end_of_text(self) -> str | None:
        """The model's own end-of-text symbol; None if it was trained without one."""
        number = int(self._processor.eos_id())
        return None if number < 0 else str(self._processor.id_to_piece(number))

    def token_id(self, token: str) -> int | None:
        """See ``Encoder``; the library gives what it does not know the id of the unknown."""
        number = int(self._processor.piece_to_id(token))
        return number if self._processor.id_to_piece(number) == token else None

    def encode(self, texts: Sequence[str]) -> Iterable[list[int]]:
        """See ``Encoder``."""
        found: list[list[int]] = self._processor.encode(list(texts), out_type=int, add_bos=False, add_eos=False)
        return found

    def encode_with_controls(self, texts: Sequence[str], controls: Sequence[Spans]) -> list[tuple[list[int], Spans]]:
        """Raise TokenizerError: the library itself has no way to write control symbols into a text."""
        raise TokenizerError(
            "tokenizer: a SentencePiece model alone has no chat format; name the folder of its model, with "
            "tokenizer_config.json, or a tokenizer.json made of it"
        )

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Encoder``; the space that the model puts before a text is taken off after each special token."""
        processor = self._processor
        pieces = []
        for is_special, group in itertools.groupby(ids, key=processor.is_control):
            run = list(group)
            pieces.append("".join(map(processor.id_to_piece, run)) if is_special else processor.decode(run))
        return "".join(pieces)

    def to_json(self) -> str:
        """See ``Encoder``."""
        return json.dumps({"kind": "sentencepiece", "model": base64.b64encode(self._model).decode()})


class TiktokenEncoder:
    """An encoding of tiktoken, run by its own library."""

    def __init__(self, pattern: str, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
        """Take what an encoding is made of; raise TokenizerError if none can be made of it."""
        self._parts = (pattern, dict(ranks), dict(special_tokens))
        self._encoding = self._made()

    @classmethod
    def of(cls, encoding: Encoding) -> TiktokenEncoder:
        """Return an encoding of the library as one of ours."""
        return cls(encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)

    def __getstate__(self) -> Any:
        return self._parts

    def __setstate__(self, state: Any) -> None:
        self.__init__(*state)  # type: ignore[misc]  # the library's own object holds no state beside the parts

    def _made(self) -> Encoding:
        tiktoken = import_tiktoken()
        pattern, ranks, special_tokens = self._parts
        missing = [i for i in range(256) if bytes([i]) not in ranks]
        if missing:
            raise TokenizerError(f"not ranks of tiktoken: the byte {missing[0]} has none")
        numbers = [*ranks.values(), *special_tokens.values()]
        if len(set(numbers)) < len(numbers):
            raise TokenizerError("not ranks of tiktoken: two tokens share an id")
        try:
            encoding: Encoding = tiktoken.Encoding(
                "mixer", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens
            )
        except (ValueError, OverflowError, TypeError) as error:
            raise TokenizerError(f"not an encoding of tiktoken: {error}") from error
        return encoding

    @property
    def vocab_size(self) -> int:
        """See ``Encoder``."""
        return int(self._encoding.max_token_value) + 1

    @property
    def special_tokens(self) -> list[str]:
        """See ``Encoder``."""
        return sorted(self._parts[2], key=self._parts[2].__getitem__)

    @property
    def control_tokens(self) -> list[str]:
        """See ``Encoder``."""
        return self.special_tokens

    def token_id(self, token: str) -> int | None:
        """See ``Encoder``; special tokens alone, as all others may come of text."""
        return self._parts[2].get(token)

    def encode(self, texts: Sequence[str]) -> Iterable[list[int]]:
        """See ``Encoder``."""
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=min(8, os.cpu_count() or 1))

    def encode_with_controls(self, texts: Sequence[str], controls: Sequence[Spans]) -> list[tuple[list[int], Spans]]:
        """See ``Encoder``; the text between special tokens is encoded piece by piece, as the library does."""
        return [self._with_controls(text, spans) for text, spans in zip(texts, controls, strict=True)]

    def _with_controls(self, text: str, controls: Spans) -> tuple[list[int], Spans]:
        ids: list[int] = []
        places: list[Span] = []
        end = 0
        for start, stop in [*controls, (len(text), len(text))]:
            found = self._encoding.encode_ordinary(text[end:start])
            begins = list(itertools.accumulate((len(letter.encode()) for letter in text[end:start]), initial=0))
            sizes = (len(self._encoding.decode_single_token_bytes(i)) for i in found)
            for first, last in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
                places.append((end + bisect_right(begins, first) - 1, end + bisect_left(begins, last)))
            ids += found
            if start < stop:
                ids.append(self._parts[2][text[start:stop]])
                places.append((start, stop))
            end = stop
        return ids, places

    def decode(self, ids: Sequence[int]) -> str:
        """See ``Encoder``."""
        return str(self._encoding.decode(list(ids)))

    def to_json(self) -> str:
        """See ``Encoder``."""
        pattern, ranks, special_tokens = self._parts
        spelled = {base64.b64encode(token).decode(): rank for token, rank in ranks.items()}
        return json.dumps({"kind": "tiktoken", "pattern": pattern, "ranks": spelled, "special_tokens": special_tokens})


def import_tiktoken() -> Any:
    """Return the library; raise MissingDependencyError if it is not installed."""
    try:
        import tiktoken
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "tokenizer: an encoding of tiktoken needs its library: pip install 'curriculum-mixer[tiktoken]'"
        ) from error
    return tiktoken


def encoder_of(text: str) -> Encoder:
    """Return the encoder of the text that ``to_json`` gave, or that of a `tokenizers` file.

    Raises:
        TokenizerError: text that is neither.
        MissingDependencyError: its library is not installed.
    """
    try:
        data = json.loads(text)
        kind = data.get("kind") if isinstance(data, dict) else None
        if kind == "sentencepiece":
            return SentencePieceEncoder(base64.b64decode(data["model"]))
        if kind == "tiktoken":
            ranks = {base64.b64decode(token): rank for token, rank in data["ranks"].items()}
            return TiktokenEncoder(data["pattern"], ranks, data["special_tokens"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # the library says best what is wrong with it
    try:
        return HuggingFaceEncoder(Tokenizer.from_str(text))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"not a `tokenizers` JSON file ({error}); save one with Tokenizer.save") from error
