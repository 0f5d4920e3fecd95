"""Values of records as their file spells them: a number in a template is the characters that stand in the file.

JSON and CSV are text. What they spell is what a template gives: ``27``, ``2.50`` and ``9007199254740993`` stay so,
JSON's ``true``, ``false`` and ``null`` too, and lists and objects are JSON again. Files whose columns have types
(Parquet, Arrow) spell nothing: a value is as Python prints it, but booleans are ``true`` and ``false`` there as well.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

MAX_DIGITS = 4000  # Python makes no whole numbers of more than 4,300


class Number(float):
    """A number of JSON that is not a plain whole one: compared as a float, written as the file has it."""

    spelling: str

    def __new__(cls, spelling: str) -> Number:
        """Return the number that a text of JSON spells."""
        number = super().__new__(cls, spelling)
        number.spelling = spelling
        return number

    def __str__(self) -> str:
        return self.spelling

    def __reduce__(self) -> tuple[Any, ...]:
        return Number, (self.spelling,)


class Cell(str):
    """A value of CSV, which has no types: text, and whatever it spells where it is compared with something else."""

    __slots__ = ()
    __hash__ = str.__hash__

    @property
    def number(self) -> float | int | None:
        """The number that it spells, or None."""
        try:
            return int(self) if self.strip().lstrip("+-").isdecimal() and len(self) < MAX_DIGITS else float(self)
        except ValueError:
            return None

    def like(self, other: object) -> Any:
        """Return what it spells, of the type of ``other``: a boolean, a number, null (an empty cell), else the text."""
        if isinstance(other, bool):
            return {"true": True, "false": False}.get(self.lower(), self)
        if isinstance(other, int | float):
            number = self.number
            return self if number is None else number
        return None if other is None and not self else str(self)


def _whole(spelling: str) -> int | Number:
    return int(spelling) if spelling != "-0" and len(spelling) <= MAX_DIGITS else Number(spelling)


DECODER = json.JSONDecoder(parse_float=Number, parse_int=_whole, parse_constant=Number)


def spelled(value: object) -> str:
    """Return a value as its file spells it, as far as that is known."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping | list):
        return _as_json(value)
    return str(value)


def _as_json(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_as_json(str(key))}: {_as_json(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_json, value)) + "]"
    if value is None or isinstance(value, bool | int | float):
        return spelled(value)
    return json.dumps(str(value), ensure_ascii=False)


class TemplateFormatter(string.Formatter):
    """``str.format`` that gives each value as its file spells it, unless the template asks for a format."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return one value as text."""
        return format(value, format_spec) if format_spec else spelled(value)
