"""Files of JSON record by record: lines, one array, or objects that go over several lines each.

Values are those that Python's own `json` gives of one record at a time; only numbers that are looked at (in templates
and ``where``) are decoded by the slower of two decoders, which keeps them as they are spelled.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import orjson

from mixer.sources import blocks
from mixer.sources.batches import Batch, Position, UnreadableFile
from mixer.sources.blocks import Mark, Read, TextFile, batch_of, has_mark, num_lines, skip, whole_records
from mixer.sources.values import DECODER

SPACE = re.compile(r"[ \t\n\r]*")
EXCERPT = 60


def read_json(file: TextFile, position: Position) -> Iterator[Read]:
    """Yield the records of a file of JSON lines, of one array, or of objects that go over several lines each."""
    mark, head = Mark.of(position), b""
    if file.field is not None:
        yield from _under_key(file, mark)
        return
    if position:
        skip(file.stream, mark.byte)
    else:
        head = file.stream.read(blocks.BLOCK_BYTES)
        form = _form(head)
        if form is None:
            rest = file.stream.read()
            form = "objects" if _begins_with_object(head + rest) else "lines"
            file = replace(file, stream=io.BytesIO(rest))
        mark = Mark(form=form)
    if mark.form == "lines":
        yield from _json_lines(file, mark, head)
    else:
        yield from _json_values(file, mark, head + file.stream.read())


def _json_lines(file: TextFile, mark: Mark, head: bytes) -> Iterator[Read]:
    load: Callable[[bytes], Any] = _spelled if file.keeps_spelling else orjson.loads
    for block in whole_records(file.stream, lambda data: data.rfind(b"\n") + 1, head):
        lines = block.split(b"\n")
        starts = [0, *accumulate(len(line) + 1 for line in lines)]
        if not mark.byte and has_mark(block):
            lines[0] = lines[0][len(codecs.BOM_UTF8) :]
        if not lines[-1]:
            del lines[-1]
        del starts[len(lines) :]
        try:
            records = list(map(load, lines))
            columns = {name: [record[name] for record in records] for name in file.columns}
            batch = batch_of(file, mark, block, starts, columns)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            batch = _json_batch(file, mark, block, *_one_by_one(lines, starts, load))
        yield batch, (mark := mark.after(block)).position()


def _one_by_one(
    lines: list[bytes], starts: list[int], load: Callable[[bytes], Any]
) -> tuple[list[int], list[Any], dict[int, str]]:
    """Return where records begin, the records, and why some cannot be read."""
    kept, records, bad = [], [], dict[int, str]()
    for start, line in zip(starts, lines, strict=True):
        if not line.strip():
            continue
        kept.append(start)
        try:
            try:
                records.append(load(line))
            except ValueError:
                records.append(_spelled(line))  # which reads what Python's own reads, and says why not
        except (ValueError, RecursionError) as error:
            bad[len(records)] = _reason(error, line.decode(errors="replace"))
            records.append(None)
    return kept, records, bad


def _spelled(line: bytes) -> Any:
    return DECODER.decode(line.decode())


def _json_batch(
    file: TextFile, mark: Mark, block: bytes, starts: list[int], records: list[Any], bad: dict[int, str]
) -> Batch:
    """Return records that need not be objects, nor have every column; a column that is missing is null."""
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if isinstance(record, dict):
            names.update(dict.fromkeys(record))
        else:
            bad.setdefault(i, f"not a JSON object: {_excerpt(json.dumps(record, ensure_ascii=False))}")
            records[i] = {}
    columns = {name: [record.get(name) for record in records] for name in file.columns}
    return batch_of(file, mark, block, starts, columns, bad=bad, names=[*names] if names else None, is_open=True)


def _form(head: bytes) -> str | None:
    """Return whether a file is an ``array`` or ``lines``, or None if its first line alone does not say."""
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"["):
        return "array"
    first, _, rest = text.partition(b"\n")
    if not text.startswith(b"{") or not rest.strip():
        return "lines"
    try:
        _spelled(first)
    except (ValueError, RecursionError):
        return None
    return "lines"


def _begins_with_object(data: bytes) -> bool:
    text = data.removeprefix(codecs.BOM_UTF8).decode(errors="replace").lstrip()
    try:
        DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json_values(file: TextFile, mark: Mark, data: bytes) -> Iterator[Read]:
    """Yield the values of an array, or one object after the other, from where the next value begins to the end."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = mark.line + num_lines(data[: error.start])
        raise UnreadableFile(f"{file.name}, line {line}: not UTF-8 ({error.reason} at byte {error.start})") from error
    start = 0
    at = 1 if not mark.byte and text.startswith("\ufeff") else 0
    is_array, is_part = mark.form in ("array", "field"), mark.form == "field"
    values = _values(text, at, is_array=is_array, is_begun=mark.byte > 0, is_part=is_part)
    is_at_end = False
    while not is_at_end:
        starts, records, byte, end = list[int](), list[Any](), 0, start
        failure: tuple[str, int] | None = None
        while end - start < blocks.BLOCK_BYTES:
            try:
                found, value, following = next(values)
            except StopIteration:
                is_at_end, following = True, len(text)
                break
            except json.JSONDecodeError as error:
                failure, following = (f"not JSON ({error.msg} at column {error.colno})", error.pos), end
                break
            except RecursionError:
                failure, following = ("nested too deeply", end), end
                break
            byte += len(text[end:found].encode())
            starts.append(byte)
            byte += len(text[found:following].encode())
            records.append({"text": value} if isinstance(value, str) and is_array else value)
            end = following
        block = text[start:end].encode()
        if records:
            batch = _json_batch(file, mark, block, starts, records, {})
            yield batch, (mark := mark.after(block)).position()
        if failure is not None:
            reason, where = failure
            line = mark.line + num_lines(text[end:where].encode())
            raise UnreadableFile(f"{file.name}, line {line}: {reason}: {_excerpt(text[where:].partition(chr(10))[0])}")
        start = end


def _values(text: str, at: int, *, is_array: bool, is_begun: bool, is_part: bool) -> Iterator[tuple[int, Any, int]]:
    """Yield each value with where it begins and where what follows it begins.

    An array that ``is_part`` of an object is begun, and what follows it is no concern.

    Raises:
        json.JSONDecodeError: text that is not JSON.
    """
    if is_begun and (at == len(text) or (is_part and text[_after_space(text, at) :].startswith("]"))):
        return
    if is_array and not is_begun:
        at = text.index("[") + 1
        is_empty = text[_after_space(text, at) :].startswith("]")
        if is_empty:
            _check_end(text, text.index("]") + 1)
            return
    while True:
        at = _after_space(text, at)
        if not is_array and at == len(text):
            return
        value, end = DECODER.raw_decode(text, at)
        end = _after_space(text, end)
        if is_array:
            mark = text[end : end + 1]
            if mark not in (",", "]") or not mark:
                raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
            end += 1
            if mark == "]":
                if not is_part:
                    _check_end(text, end)
                yield at, value, len(text)
                return
        yield at, value, end
        at = end


def _under_key(file: TextFile, mark: Mark) -> Iterator[Read]:
    """Yield the elements of the list under a key of a file's one object, from a mark on."""
    data = file.stream.read()
    start = mark.byte
    if not start:
        start = _list_under(file, data)
        mark = replace(mark.after(data[:start]), form="field")
    yield from _json_values(file, mark, data[start:])


def _list_under(file: TextFile, data: bytes) -> int:
    """Return the byte at which the elements of the list under ``file.field`` begin, after its bracket."""
    try:
        text = data.decode()
        at = _after_space(text, 1 if text.startswith("\ufeff") else 0)
        DECODER.decode(text[at:])  # the whole of it, so that nothing wrong is left behind the list
    except ValueError as error:
        where = getattr(error, "start", None)
        line = getattr(error, "lineno", 1) if where is None else 1 + num_lines(data[:where])
        raise UnreadableFile(f"{file.name}, line {line}: not JSON ({error})") from error
    except RecursionError as error:
        raise UnreadableFile(f"{file.name}: nested too deeply") from error
    found: list[str] = []
    while text[at] != "}" and text.startswith(("{", ","), at):
        at = _after_space(text, at + 1)
        if text[at] == "}":
            break
        key, at = DECODER.raw_decode(text, at)
        at = _after_space(text, _after_space(text, at) + 1)  # past the colon
        if key == file.field:
            if text[at] != "[":
                line = 1 + num_lines(text[:at].encode())
                raise UnreadableFile(f"{file.name}, line {line}: field {key!r} is no list of records")
            return len(text[: at + 1].encode())
        found.append(key)
        _, at = DECODER.raw_decode(text, at)
        at = _after_space(text, at)
    what = f"its keys are {', '.join(map(repr, found[:10]))}" if found else "it is no object with keys"
    raise UnreadableFile(f"{file.name}: no field {file.field!r}; {what}")


def _after_space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    assert match is not None
    return match.end()


def _check_end(text: str, at: int) -> None:
    at = _after_space(text, at)
    if at < len(text):
        raise json.JSONDecodeError("Extra data", text, at)


def _reason(error: Exception, line: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno}): {_excerpt(line)}"
    return f"not JSON ({error}): {_excerpt(line)}"


def _excerpt(text: str) -> str:
    text = text.strip()
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"
