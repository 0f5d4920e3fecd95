"""Rows to text: which rows count (``where``) and how one becomes a document (``text``, ``messages``, ``template``).

Columns of token ids (``token_ids``, ``rows``) are read in ``tokens.py``; here they are only columns that must exist.

A row that cannot be rendered is an error, never an empty document: a wrong column name would train on silence.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mixer.config.conditions import UnlikeTypesError, holds
from mixer.config.problems import suggestion
from mixer.config.sources import RENDERINGS, SourceConfig
from mixer.errors import ConfigError, MissingDataError
from mixer.sources.batches import BadRecord
from mixer.sources.values import Number, TemplateFormatter

if TYPE_CHECKING:
    from mixer.sources.chat import ChatTemplate

TURNS = {"user": "> ", "human": "> ", "assistant": "< ", "gpt": "< ", "system": "* "}

FORMATTER = TemplateFormatter()

Row = Mapping[str, Any]


class Renderer:
    """Turns the rows of one source into documents."""

    def __init__(self, source: SourceConfig, chat: ChatTemplate | None = None) -> None:
        self.name = source.name
        assert (chat is not None) == source.renders_chat, "whoever opens a source of conversations knows their template"
        self._chat = chat
        self._tools = source.chat.tools if source.chat is not None else None
        self._where = source.where
        self._template = source.template
        self._messages = source.messages
        self._text = source.text or "text"
        if source.token_column is not None:
            rendered = [source.token_column]
        elif source.template is not None:
            rendered = _fields(source.name, source.template)
        else:
            rendered = [self._text if source.messages is None else source.messages]
        is_text = source.token_column is None and source.template is None and source.messages is None
        self.text_column = self._text if is_text else None  # if its values are the documents, as they are
        self._rendered = rendered
        tools = [self._tools] if self._tools is not None else []
        self.columns = tuple(dict.fromkeys([*rendered, *tools, *self._where]))

    def check_columns(self, known: Iterable[str], file: str = "") -> None:
        """Raise MissingDataError if a column that is needed is not among those known, which are of a file."""
        self._check(self.columns, list(known), file)

    def check_rendered(self, known: Iterable[str], file: str = "") -> None:
        """Do so for what documents are made of alone: what ``where`` asks for may be missing, and then is null."""
        self._check(self._rendered, list(known), file)

    def _check(self, columns: Iterable[str], known: list[str], file: str) -> None:
        for column in columns:
            if column not in known:
                raise MissingDataError(
                    f"source {self.name}: no column {column!r}{suggestion(column, known)}; "
                    f"columns: {', '.join(known) or 'none'}; set {', '.join(RENDERINGS)} or where to one of them"
                    f"{f' (in {file})' if file else ''}"
                )

    def matches(self, row: Row) -> bool:
        """Whether every column of ``where`` is what it asks for.

        Raises:
            BadRecord: a value that cannot be compared.
        """
        for column, condition in self._where.items():
            try:
                if not holds(row[column], condition):
                    return False
            except UnlikeTypesError as error:
                raise BadRecord(f"column {column!r} {error}") from error
        return True

    @property
    def keeps_spelling(self) -> bool:
        """Whether numbers are looked at, so that they must be as their file spells them."""
        return self._template is not None or bool(self._where)

    def render(self, row: Row) -> str:
        """Return the document of a row.

        Raises:
            BadRecord: a row that has none.
        """
        if self._template is not None:
            return self._from_template(self._template, row)
        if self._messages is not None and self._chat is not None:
            return self._chat.render(row[self._messages], None if self._tools is None else row[self._tools])
        if self._messages is not None:
            return self._from_messages(row[self._messages])
        return self._string(row[self._text], f"column {self._text!r}")

    def _from_template(self, template: str, row: Row) -> str:
        for column in self.columns:
            if row[column] is None and column not in self._where:
                raise BadRecord(f"column {column!r} of the template is null")
        try:
            return FORMATTER.vformat(template, (), row)
        except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
            raise BadRecord(f"the template {template!r} cannot be filled: {error!r}") from error

    def _from_messages(self, messages: Any) -> str:
        if not isinstance(messages, list):
            raise BadRecord(f"column {self._messages!r} holds {_kind(messages)}, not a list of messages")
        return "\n".join(self._turn(message) for message in messages)

    def _turn(self, message: Any) -> str:
        if not isinstance(message, Mapping):
            raise BadRecord(f"a message is {_kind(message)}, not a mapping with role and content")
        by_role = message.get("role") is not None  # columns that mix both shapes have null in the other's keys
        role, content = ("role", "content") if by_role else ("from", "value")
        if not isinstance(message.get(role), str) or message[role] not in TURNS:
            raise BadRecord(f"unknown role {message.get(role)!r}; known: {', '.join(TURNS)}")
        return TURNS[message[role]] + self._string(message.get(content), f"{content!r} of a message")

    def _string(self, value: Any, what: str) -> str:
        if not isinstance(value, str):
            raise BadRecord(f"{what} is {_kind(value)}, not text")
        return str(value)


def _fields(name: str, template: str) -> list[str]:
    """Return the columns that a template names: ``{word}`` and ``{entry[word]}`` name ``word`` and ``entry``."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError(f"source {name}: template {template!r} is not well formed: {error}") from error
    columns = [re.split(r"[.\[]", field, maxsplit=1)[0] for field in fields]
    if not columns or not all(columns) or any(column.isdigit() for column in columns):
        raise ConfigError(f"source {name}: template {template!r} must name columns, as in '> define {{word}}'")
    return columns


def _kind(value: Any) -> str:
    name = "float" if isinstance(value, Number) else type(value).__name__
    return "null" if value is None else f"{name} {str(value)[:40]!r}"
