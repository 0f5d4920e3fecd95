"""What ``where`` asks of a column: one of some values, or comparisons such as ``{ge: 3, lt: 5}``, all of which hold.

Booleans are no numbers, and null is in no order: it equals null alone. A comparison of unlike types has no answer, and
says so; a plain value merely differs from what is of another type.
"""

from __future__ import annotations

import datetime
import math
import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from numbers import Number
from typing import Annotated, Any

from pydantic import AfterValidator

from mixer.config.problems import suggestion

ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
COMPARISONS = ("eq", "ne", *ORDERS, "in", "not_null")


class UnlikeTypesError(Exception):
    """A value that cannot be compared with what it is asked to be compared with; the message says both."""


def checked(condition: Any) -> Any:
    """Return a condition of a config file with its lists as tuples; raise ValueError for one that means nothing."""
    if not isinstance(condition, Mapping):
        return _values(condition, "it") if isinstance(condition, list | tuple) else _value(condition, "it")
    if not condition:
        raise ValueError(f"it compares with nothing; comparisons: {', '.join(COMPARISONS)}")
    return {name: _wanted(name, each) for name, each in condition.items()}


def _wanted(name: Any, wanted: Any) -> Any:
    if name not in COMPARISONS:
        raise ValueError(f"unknown comparison {name!r}{suggestion(name, COMPARISONS)}; known: {', '.join(COMPARISONS)}")
    if name == "in":
        if not (isinstance(wanted, list | tuple) and wanted):
            raise ValueError(f"in is {wanted!r}; it takes a list of values")
        return _values(wanted, name)
    if name == "not_null" and not isinstance(wanted, bool):
        raise ValueError(f"not_null is {wanted!r}; it is true, or false for rows that are null")
    if isinstance(wanted, list | tuple):
        raise ValueError(f"{name} is {wanted!r}; it takes one value, and in takes a list")  # noqa: TRY004  # pydantic's
    if name in ORDERS and (wanted is None or isinstance(wanted, bool)):
        raise ValueError(f"{name} is {wanted!r}, which is in no order; compare with a number or with text")
    return _value(wanted, name)


def _values(wanted: list[Any] | tuple[Any, ...], name: str) -> tuple[Scalar, ...]:
    return tuple(_value(each, name) for each in wanted)


def _value(wanted: Any, name: str) -> Scalar:
    if isinstance(wanted, float) and not math.isfinite(wanted):
        raise ValueError(f"{name} is {wanted!r}, not a finite number")
    if isinstance(wanted, int) and not -(2**63) <= wanted < 2**63:  # columns hold no others, nor does a journal
        raise ValueError(f"{name} is {str(wanted)[:40]}, which does not fit into 64 bits")
    if wanted is None or isinstance(wanted, str | bool | int | float):
        return wanted
    raise ValueError(f"{name} is {wanted!r}, not text, a number, true, false or null; dates are text, in quotes")


Scalar = str | int | float | bool | None
Condition = Annotated[Any, AfterValidator(checked)]  # a Scalar, a tuple of them, or a comparison's name: value


def holds(value: Any, condition: Any) -> bool:
    """Return whether a value is what a condition asks for.

    Args:
        value: of a row, of any type; one that spells several (a cell of CSV) has a method ``like``.
        condition: as ``checked`` returns it.

    Raises:
        UnlikeTypesError: a comparison with a value of another type.
    """
    if isinstance(condition, Mapping):
        return all(_compared(value, name, wanted) for name, wanted in condition.items())
    alternatives = condition if isinstance(condition, tuple) else (condition,)
    return any(_equal(_spelled(value, each), each) for each in alternatives)


def _compared(value: Any, name: str, wanted: Any) -> bool:
    if name == "not_null":
        return bool((_spelled(value, None) is not None) == wanted)
    if name == "in":
        alike = [each for each in wanted if _are_alike(_spelled(value, each), each)]
        if not alike:
            raise _unlike(value, name, list(wanted))
        return any(_equal(_spelled(value, each), each) for each in alike)
    found = _spelled(value, wanted)
    if isinstance(found, datetime.date | datetime.time) and isinstance(wanted, str):
        wanted = _moment(type(found), wanted)
    if not _are_alike(found, wanted):
        raise _unlike(value, name, wanted)
    if name not in ORDERS:
        return _equal(found, wanted) == (name == "eq")
    try:
        return found is not None and bool(ORDERS[name](found, wanted))
    except TypeError as error:  # of two types of dates, or lists
        raise _unlike(value, name, wanted) from error


def _spelled(value: Any, wanted: Any) -> Any:
    """Return a value as the type that it is compared with, if it spells one; an empty cell is null, but also text."""
    if not hasattr(value, "like"):
        return float(value) if isinstance(value, Decimal) and isinstance(wanted, float) else value  # 0.1 is 0.1
    found = value.like(wanted)
    return None if found == "" and not isinstance(wanted, str) else found


def _equal(value: Any, wanted: Any) -> bool:
    """Whether both are equal; true is not 1, as it is for Python."""
    return bool(isinstance(value, bool) == isinstance(wanted, bool) and value == wanted)


def _are_alike(value: Any, wanted: Any) -> bool:
    return value is None or wanted is None or _kind(value) == _kind(wanted)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, Number):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__


def _moment(kind: Any, text: str) -> Any:
    """Return the date or time that text spells as ISO 8601 has it; the text itself if it spells none."""
    try:
        return kind.fromisoformat(text)
    except ValueError:
        return text


def _unlike(value: Any, name: str, wanted: Any) -> UnlikeTypesError:
    return UnlikeTypesError(
        f"is {type(value).__name__} {str(value)[:40]!r}, which has no answer to {name} {wanted!r}: "
        "compare values of one type"
    )
