"""Tokenizers as people have them: files and folders of this machine, and names that a hub or tiktoken knows.

A folder with ``tokenizer.json`` is read by `tokenizers` itself. One that has only what that could be made of is made
into one by `transformers`, whose ids are then the standard.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixer.config.curriculum import Curriculum
from mixer.config.sources import DEFAULT_SEPARATOR, TokenizerConfig
from mixer.errors import MissingDependencyError, TokenizerError
from mixer.sources.encoders import (
    Encoder,
    HuggingFaceEncoder,
    SentencePieceEncoder,
    TiktokenEncoder,
    encoder_of,
    import_tiktoken,
)
from mixer.sources.tokenizer import Companion, TextTokenizer, read_tokenizer, text_of

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
PARTS = ("*.model", "vocab.*", "merges.txt")  # what transformers makes a tokenizer of
OF_A_TOKENIZER = ("*token*.json", "*.jinja", "config.json", "*.tiktoken", *PARTS)
PUBLIC_ENCODINGS = ("gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def find_tokenizer(curriculum: Curriculum) -> tuple[TextTokenizer, str]:
    """Return the tokenizer that the curriculum names, which is not to be trained, and what to call it in messages.

    Raises:
        TokenizerError: one that is not there, cannot be used, or has no separator.
        MissingDependencyError: the library that runs it is not installed.
    """
    config = curriculum.tokenizer
    assert config is not None, "asked where there is a tokenizer"
    if config.tiktoken is not None:
        return _of_encoding(config.tiktoken, config), f"tiktoken's {config.tiktoken}"
    if config.hub is not None:
        return _of_folder(_from_hub(config.hub, config.revision), config, config.hub), f"{config.hub} of the hub"
    assert config.file is not None
    path = curriculum.resolve(config.file)
    if path.exists() or not _is_name(config.file):
        return _of_path(path, config), str(path)
    if config.file in _encodings():
        return _of_encoding(config.file, config), f"tiktoken's {config.file}"
    try:
        folder = _from_hub(config.file, None)
    except TokenizerError as error:
        raise TokenizerError(
            f"tokenizer.file: no such file or folder: {path}; nor can it be of the hub: {error}"
        ) from error
    return _of_folder(folder, config, config.file), f"{config.file} of the hub"


def _is_name(text: str) -> bool:
    return HUB_ID.fullmatch(text) is not None and Path(text).suffix not in (".json", ".model", ".tiktoken")


def _of_path(path: Path, config: TokenizerConfig) -> TextTokenizer:
    if path.is_dir():
        return _of_folder(path, config, str(path))
    if path.suffix == ".tiktoken" or config.pattern is not None:
        return _of_tiktoken_file(path, config)
    if config.special_tokens is not None:
        raise TokenizerError(f"tokenizer.special_tokens: {path} names its own; remove them, or give `pattern` too")
    if path.suffix == ".model":
        try:
            encoder = SentencePieceEncoder(path.read_bytes())
        except OSError as error:
            raise TokenizerError(f"tokenizer.file: {path} cannot be read: {error.strerror or error}") from error
        except TokenizerError as error:
            raise TokenizerError(f"tokenizer.file: {path} is {error}") from error
        return _assembled(encoder, config, str(path), {"eos_token": encoder.end_of_text})
    separator = config.separator or DEFAULT_SEPARATOR
    if config.bos:
        return _assembled(_encoder_of_file(path), config, str(path), {"eos_token": separator})
    return read_tokenizer(path, separator)


def _encoder_of_file(path: Path) -> Encoder:
    try:
        return encoder_of(text_of(path))
    except TokenizerError as error:
        raise TokenizerError(
            f"tokenizer.file: {path} is {error}" if str(error)[:4] == "not " else str(error)
        ) from error


def _of_folder(folder: Path, config: TokenizerConfig, name: str) -> TextTokenizer:
    said = _read_json(folder / CONFIG)
    special = {**_special_tokens(_read_json(folder / "special_tokens_map.json")), **_special_tokens(said)}
    if (folder / TOKENIZER).exists():
        encoder = _encoder_of_file(folder / TOKENIZER)
    else:
        encoder = _converted(folder, name)
    bos = special.get("bos_token") if _puts_bos(encoder, said, special) else None
    return _assembled(encoder, config, name, special, bos, _chat_templates(folder, said))


def _puts_bos(encoder: Encoder, said: Mapping[str, Any], special: Mapping[str, str | None]) -> bool:
    """Whether the tokenizer's own habit is to begin each text with BOS."""
    if isinstance(said.get("add_bos_token"), bool):
        return bool(said["add_bos_token"])
    begin = encoder.first_special_ids[:1] if isinstance(encoder, HuggingFaceEncoder) else []
    bos = special.get("bos_token")
    return bool(begin) and bos is not None and begin == [encoder.token_id(bos)]


def _assembled(
    encoder: Encoder,
    config: TokenizerConfig,
    name: str,
    special: Mapping[str, str | None],
    bos: str | None = None,
    chat_templates: Mapping[str, str] | None = None,
) -> TextTokenizer:
    separator = config.separator or special.get("eos_token")
    if separator is None:
        known = ", ".join(encoder.special_tokens) or "none"
        raise TokenizerError(
            f"tokenizer: {name} names no eos_token to separate documents with; write `separator:` under `tokenizer:`, "
            f"with one of its special tokens: {known}"
        )
    bos = bos if config.bos is None else config.bos or None
    given = {key: token for key, token in special.items() if token is not None}
    return TextTokenizer(encoder, separator, Companion(bos, chat_templates or {}, given))


def _of_encoding(name: str, config: TokenizerConfig) -> TextTokenizer:
    tiktoken = import_tiktoken()
    try:
        encoder = TiktokenEncoder.of(tiktoken.get_encoding(name))
    except Exception as error:  # it lets through whatever fetching its ranks raises
        known = ", ".join(tiktoken.list_encoding_names())
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(f"tokenizer.tiktoken: {name!r} cannot be had: {reason}; known: {known}") from error
    return _assembled(encoder, config, f"tiktoken's {name}", _end_of_text(encoder))


def _end_of_text(encoder: Encoder) -> dict[str, str | None]:
    is_known = encoder.token_id(DEFAULT_SEPARATOR) is not None
    return {"eos_token": DEFAULT_SEPARATOR if is_known else None}


def _encodings() -> tuple[str, ...]:
    try:
        return tuple(import_tiktoken().list_encoding_names())
    except MissingDependencyError:
        return PUBLIC_ENCODINGS


def _of_tiktoken_file(path: Path, config: TokenizerConfig) -> TextTokenizer:
    """Return the encoding of a file of ranks: on each line a token in base64 and its rank."""
    if config.pattern is None or not config.special_tokens:
        raise TokenizerError(
            f"tokenizer.file: {path} holds ranks alone; give `pattern`, the regular expression that splits its text, "
            "and `special_tokens`, such as {<|endoftext|>: 100257}"
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"tokenizer.file: {path}, line {number}: not a token in base64 and its rank: {line[:60]!r}"
            ) from error
    try:
        encoder = TiktokenEncoder(config.pattern, ranks, config.special_tokens)
    except TokenizerError as error:
        raise TokenizerError(f"tokenizer.file: {path} is {error}") from error
    return _assembled(encoder, config, str(path), _end_of_text(encoder))


def _converted(folder: Path, name: str) -> Encoder:
    """Return what `transformers` makes of the vocabulary of a folder without ``tokenizer.json``."""
    found = [path for part in PARTS for path in sorted(folder.glob(part))]
    if not found:
        raise TokenizerError(
            f"tokenizer: {name} has no {TOKENIZER}, nor a vocabulary ({', '.join(PARTS)}) to make one of; "
            "name a folder that Tokenizer.save or save_pretrained wrote"
        )
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"tokenizer: {name} has no {TOKENIZER}, and making it of {found[0].name} needs transformers: "
            "pip install 'curriculum-mixer[chat]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return HuggingFaceEncoder(tokenizer.backend_tokenizer)
    except Exception as error:  # whatever its many classes raise
        raise TokenizerError(
            f"tokenizer: transformers cannot make a {TOKENIZER} of {name} ({str(error)[:300]}); name its "
            f"{found[0].name} itself, if that is a SentencePiece model, or a folder with {TOKENIZER}"
        ) from error


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(OF_A_TOKENIZER)))
    except Exception as error:  # of the network, of the hub, or of a name that is none
        at = f" at revision {revision}" if revision else ""
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(f"tokenizer.hub: {name!r}{at} cannot be had: {reason}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TokenizerError(f"tokenizer: {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"tokenizer: {path} is {type(data).__name__}, not a mapping of settings")
    return data


def _special_tokens(said: Mapping[str, Any]) -> dict[str, str | None]:
    """Return special tokens by their part, which are written as text or as ``{content: ...}``."""
    found: dict[str, str | None] = {}
    for key, value in said.items():
        token = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(token, str):
            found[key] = token
    return found


def _chat_templates(folder: Path, said: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates of a folder by name, the first one ``default``; those in files of their own win."""
    written = said.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(written, str):
        templates["default"] = written
    elif isinstance(written, list):
        templates |= {str(each.get("name")): str(each.get("template")) for each in written if isinstance(each, Mapping)}
    if (folder / TEMPLATE).exists():
        templates["default"] = text_of(folder / TEMPLATE)
    for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        templates[path.stem] = text_of(path)
    return templates
