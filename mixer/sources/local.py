"""Real text that every machine with Python has: the standard library and the packages installed beside it.

Each collection is gathered once into a JSON-lines file in the cache and then streamed like any other source. Nothing
is imported to be read, and nothing outside the Python installation is looked at. The file's name has a digest of what
it was made from, so that another Python or another package gives another file, never a stale one.
"""

from __future__ import annotations

import ast
import errno
import functools
import hashlib
import html.entities
import http
import importlib.metadata
import inspect
import json
import mimetypes
import os
import re
import signal
import sys
import sysconfig
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mixer.config.problems import suggestion
from mixer.errors import EmptySourceError, UnknownSourceError
from mixer.system.files import cache_root, written_whole

VERSION = 2  # of what the collections hold; a new number makes every cached file anew

# Tests, tables, generated and vendored code: large, little to read, and not on every Python
SKIPPED_FOLDERS = frozenset(
    (
        *("site-packages", "dist-packages", "lib-dynload", "__pycache__", "ensurepip", "test", "tests", "idle_test"),
        *("idlelib", "lib2to3", "encodings", "turtledemo", "pydoc_data"),
    )
)
CATEGORIES = {"S": "symbol", "P": "punctuation mark", "N": "number", "L": "letter", "M": "mark"}

Document = tuple[str, str]  # (text, origin)


@dataclass(frozen=True)
class Collection:
    """One gathering of documents; ``limit_bytes`` of text are kept, whole documents in a fixed order."""

    name: str
    description: str
    documents: Callable[[], Iterator[Document]]
    limit_bytes: int = 6_000_000
    of_packages: bool = False  # whether installed packages shape it


def gather(name: str, limit_bytes: int | None = None) -> Path:
    """Return the JSON-lines file of a collection, made now if this Python has none yet.

    Each line is ``{"text": ..., "origin": ...}``.

    Raises:
        UnknownSourceError: no collection of that name.
        EmptySourceError: this Python installation has none of the text; nothing is written.
    """
    collection = COLLECTIONS.get(name)
    if collection is None:
        raise UnknownSourceError(
            f"local: no collection {name!r}{suggestion(name, COLLECTIONS)}; known: {', '.join(COLLECTIONS)}"
        )
    limit = collection.limit_bytes if limit_bytes is None else limit_bytes
    path = cache_root() / "local" / f"{name}-{_digest(collection, limit)}.jsonl"
    if path.exists():
        return path
    documents = _limited(collection.documents(), limit)
    first = next(documents, None)
    if first is None:
        raise EmptySourceError(
            f"local: {name}: this Python ({sys.prefix}) has none of it ({collection.description}); "
            "use another collection, or files of your own as data_files"
        )
    with written_whole(path) as file:
        for text, origin in (first, *documents):
            file.write(json.dumps({"text": text, "origin": origin}, ensure_ascii=False) + "\n")
    return path


def _digest(collection: Collection, limit: int) -> str:
    made_of = [VERSION, collection.name, limit, sys.version, sys.platform]
    if collection.of_packages:
        made_of += [f"{found.name}=={found.version}" for found in _distributions()]
    return hashlib.blake2b(json.dumps(made_of).encode(), digest_size=8).hexdigest()


def _limited(documents: Iterable[Document], limit: int) -> Iterator[Document]:
    """Skip repeated and unprintable documents and stop before ``limit`` bytes of text are passed."""
    seen: set[bytes] = set()
    for text, origin in documents:
        try:
            data = text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which no file can hold
            continue
        key = hashlib.blake2b(data, digest_size=16).digest()
        if not text.strip() or key in seen:
            continue
        limit -= len(data)
        if limit < 0:
            return
        seen.add(key)
        yield text, origin


# -- the standard library, by one reading of its sources -------------------------------------------------------------


@dataclass(frozen=True)
class _Pieces:
    """What one source file of the standard library holds, as (text, origin)."""

    docstrings: list[Document]
    definitions: list[Document]
    errors: list[Document]
    comments: list[Document]


@functools.cache
def _library() -> list[_Pieces]:
    """Parse the library once for the four collections made of it: 6 s and about 20 MB, instead of four times."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).parts
        if SKIPPED_FOLDERS.isdisjoint(parts) and not parts[0].startswith("config-"):
            found.append(_pieces(path, ".".join(path.relative_to(root).with_suffix("").parts)))
    return found


def _pieces(path: Path, module: str) -> _Pieces:
    pieces = _Pieces([], [], [], [])
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):  # templates and deliberately broken files
        return pieces
    lines = source.splitlines(keepends=True)
    _visit(tree, module, lines, pieces)
    pieces.comments.extend((text, module) for text in _comments(lines))
    return pieces


def _visit(node: ast.AST, name: str, lines: list[str], pieces: _Pieces) -> None:
    """Walk statements only: expressions are most of a tree and hold nothing we want but ``raise``'s."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            pieces.docstrings.append((f"{name}\n\n{docstring}\n", name))
    elif isinstance(node, ast.Raise):
        message = _message(node)
        if message:
            pieces.errors.append((message, name))
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, block, ()):
            if not isinstance(child, ast.AST):
                continue
            inner = name
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{name}.{child.name}"
                if isinstance(node, ast.Module):
                    text = "".join(lines[child.lineno - 1 : child.end_lineno])
                    pieces.definitions.append((text, inner))
            _visit(child, inner, lines, pieces)


def _message(node: ast.Raise) -> str:
    """Return ``ValueError: message`` of ``raise ValueError("message")``, with ``...`` for what is computed."""
    call = node.exc
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args):
        return ""
    argument = call.args[0]
    if isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Mod):
        argument = argument.left
    parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)
    return f"{call.func.id}: {text}\n" if len(text) > 12 and " " in text else ""


def _comments(lines: list[str]) -> Iterator[str]:
    """Blocks of two or more comment lines, without their marks."""
    block: list[str] = []
    for line in [*lines, ""]:
        stripped = line.strip()
        if stripped.startswith("#"):
            block.append(stripped.lstrip("#! ").rstrip())
            continue
        text = "\n".join(block).strip()
        if len(block) > 1 and len(text) > 60:
            yield text + "\n"
        block = []


def _docstrings() -> Iterator[Document]:
    return (piece for pieces in _library() for piece in pieces.docstrings if len(piece[0]) > 80)


def _code() -> Iterator[Document]:
    return (piece for pieces in _library() for piece in pieces.definitions)


def _errors() -> Iterator[Document]:
    return (piece for pieces in _library() for piece in pieces.errors)


def _comment_blocks() -> Iterator[Document]:
    return (piece for pieces in _library() for piece in pieces.comments)


def _dialogues() -> Iterator[Document]:
    """Doctest sessions as turns: what was typed after ``> ``, what came back after ``< ``."""
    from doctest import DocTestParser  # imports the debugger

    parser = DocTestParser()
    for text, origin in _doctest_texts():
        try:
            examples = parser.get_examples(text)
        except ValueError:  # text that only looks like a session
            continue
        if any(example.want for example in examples):  # else nobody answers
            turns = (f"> {example.source}" + (f"< {example.want}" if example.want else "") for example in examples)
            yield "".join(turns), origin


def _doctest_texts() -> Iterator[Document]:
    """Docstrings, reference topics, and the sessions in the library's tests, where this Python has them."""
    for pieces in _library():
        yield from (piece for piece in pieces.docstrings if ">>>" in piece[0])
    yield from (piece for piece in _topics() if ">>>" in piece[0])
    tests = Path(sysconfig.get_path("stdlib")) / "test"
    for path in sorted(tests.rglob("*.py")):
        source = _readable(path)
        if source.count(">>>") < 3:
            continue
        try:
            tree = ast.parse(source)
        except (ValueError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and ">>>" in node.value:
                yield inspect.cleandoc(node.value), f"test.{path.stem}"


def _topics() -> Iterator[Document]:
    """The language reference as `pydoc` carries it: a dict literal, read without importing it."""
    source = _readable(Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            yield from ((text, f"topics.{topic}") for topic, text in sorted(topics.items()))


# -- installed packages ----------------------------------------------------------------------------------------------


def _distributions() -> list[importlib.metadata.Distribution]:
    """Every installed package once, in the order of their names."""
    found = {dist.name.lower(): dist for dist in importlib.metadata.distributions() if dist.metadata["Name"]}
    return [found[name] for name in sorted(found)]


def _readmes() -> Iterator[Document]:
    """Long descriptions, which most packages make of their README."""
    for dist in _distributions():
        description = dist.metadata.get_payload()  # type: ignore[attr-defined]  # an email.message.Message underneath
        if isinstance(description, str) and len(description) > 200:
            yield description, dist.name


def _licences() -> Iterator[Document]:
    """Licence texts, shortest first: the same few paragraphs again and again with another name on top."""
    texts = []
    for dist in _distributions():
        for file in dist.files or ():
            if re.match(r"(?i)(licen[cs]e|copying|notice)", file.name) and file.suffix in ("", ".txt", ".md", ".rst"):
                texts.append((_readable(Path(str(dist.locate_file(file)))), f"{dist.name}/{file.name}"))
    prefixes = (Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix))
    texts += [(_readable(prefix / "LICENSE.txt"), "Python/LICENSE.txt") for prefix in prefixes]
    yield from sorted(((text, origin) for text, origin in texts if text.strip()), key=lambda pair: (len(pair[0]), pair))


# -- tables ----------------------------------------------------------------------------------------------------------


def _definitions() -> Iterator[Document]:
    """Unicode characters in the shape of ANDREA's dictionary: ``> define X`` and ``< X is ...``."""
    for code in range(0x20, sys.maxunicode + 1):
        character = chr(code)
        name = unicodedata.name(character, "")
        ranges = ("CJK UNIFIED", "CJK COMPATIBILITY", "HANGUL SYLLABLE")  # numbered, not named
        if not name or name.startswith(ranges) or not character.isprintable():
            continue
        kind = CATEGORIES.get(unicodedata.category(character)[0], "character")
        value = unicodedata.numeric(character, None)
        worth = "" if value is None else f" worth {value:g}"
        yield f"> define {character}\n< {character} is the {kind} {name.lower()}{worth}, U+{code:04X}.\n", "unicode"


def _glossary() -> Iterator[Document]:
    """Short facts that Python knows: HTTP statuses, error numbers, signals, entities, file types."""
    for status in http.HTTPStatus:
        meaning = f"{status.phrase}: {status.description}" if status.description else status.phrase
        yield f"> what is HTTP {status.value}\n< HTTP {status.value} is {meaning}.\n", "http"
    for number, name in sorted(errno.errorcode.items()):
        yield f"> what is {name}\n< {name} is error {number}: {os.strerror(number)}.\n", "errno"
    for sign in sorted(signal.valid_signals()):
        described = signal.strsignal(sign)
        if isinstance(sign, signal.Signals) and described:
            yield f"> what is {sign.name}\n< {sign.name} is signal {int(sign)}: {described}.\n", "signal"
    for entity, characters in sorted(html.entities.html5.items()):
        names = " and ".join(unicodedata.name(c, f"U+{ord(c):04X}").lower() for c in characters)
        if entity.endswith(";"):
            yield f"> what is &{entity}\n< &{entity} is {characters}, {names}.\n", "html"
    known = mimetypes.MimeTypes(filenames=())  # without arguments it would add this machine's own tables
    for extension, kind in sorted(known.types_map[True].items()):
        yield f"> what is a {extension} file\n< A {extension} file is {kind}.\n", "mimetypes"


def _readable(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # not there on a stripped Python, or not text
        return ""


COLLECTIONS: dict[str, Collection] = {
    collection.name: collection
    for collection in (
        Collection("code", "functions and classes of the standard library", _code),
        Collection("comments", "blocks of comments in the standard library", _comment_blocks),
        Collection("definitions", "Unicode characters and their names, as '> define X' and '< X is ...'", _definitions),
        Collection("dialogues", "doctest sessions as turns", _dialogues),
        Collection("docstrings", "docstrings of the standard library", _docstrings),
        Collection("errors", "messages of the exceptions that the standard library raises", _errors),
        Collection("glossary", "HTTP statuses, error numbers, signals, HTML entities and file types", _glossary),
        Collection(
            "licences",
            "licences of installed packages: few, short, and nearly all alike",
            _licences,
            limit_bytes=24_000,  # the smallest on purpose: a run repeats it hundreds of times
            of_packages=True,
        ),
        Collection("readmes", "long descriptions of installed packages", _readmes, of_packages=True),
        Collection("topics", "the language reference that pydoc shows", _topics),
    )
}
