"""pydantic's validation errors as sentences: where, what, the offending value, the nearest known key."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

MAX_SHOWN = 100


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(value: object) -> str:
    """Return a value as a message quotes it, which for some numbers would be longer than all that it says."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one sentence per problem, in the order of the file."""
    problems = error.errors()
    with_bad_items = {problem["loc"][:1] for problem in problems if len(problem["loc"]) > 1}
    return [
        _sentence(dict(problem), model)
        for problem in problems
        if problem["type"] != "too_short" or problem["loc"] not in with_bad_items  # bad items are not counted
    ]


def is_unknown_keys_alone(error: ValidationError) -> bool:
    """Return whether nothing is wrong but keys that no field has."""
    return all(problem["type"] == "extra_forbidden" for problem in error.errors())


def without_unknown_keys(data: Mapping[str, Any], error: ValidationError) -> dict[str, Any]:
    """Return ``data`` without the keys that ``error`` calls unknown."""
    pruned = copy.deepcopy(dict(data))
    for problem in error.errors():
        inner: Any = pruned
        for part in problem["loc"][:-1]:
            if not isinstance(inner, Mapping) or part in inner:  # else the part names a kind of policy
                inner = inner[part]
        del inner[problem["loc"][-1]]
    return pruned


def _sentence(problem: dict[str, Any], model: type[BaseModel]) -> str:
    where = ".".join("tokens" if part == "token_files" else str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, problem["loc"])
        hint = suggestion(problem["loc"][-1], known) or f"; known keys: {', '.join(known)}"
        return f"{where}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"{where}: required, but missing"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        known = _tags(model, problem["loc"])
        given = problem["input"].get("name") if isinstance(problem["input"], Mapping) else None
        what = "name is missing" if given is None else f"unknown name {given!r}{suggestion(given, known)}"
        return f"{where}: {what}; known: {', '.join(known)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message if message.startswith(("source ", "tokenizer", "phases")) else f"{where}: {message}"
    return f"{where}: {message}, got {shown(problem['input'])}"


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Follow ``loc`` through nested models and return the keys known where it ends."""
    candidates = [model]
    for part in loc[:-1]:
        tagged = [m for m in candidates if "name" in m.model_fields and m.model_fields["name"].default == part]
        inner = [
            found
            for m in candidates
            if part in m.model_fields
            for found in _models_in(m.model_fields[str(part)].annotation)
        ]
        candidates = tagged or inner or candidates
    return [key for m in candidates for key in m.model_fields]


def _tags(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the names that tell the models of a union apart."""
    return [m.model_fields["name"].default for m in _models_in(model.model_fields[str(loc[-1])].annotation)]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]
