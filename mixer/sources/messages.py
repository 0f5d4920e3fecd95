"""The messages of a record as chat templates take them: roles by one name, contents as text, no key without a value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mixer.config.sources import ChatConfig
from mixer.sources.batches import BadRecord
from mixer.sources.values import Number

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_NAMES = {"human": "user", "gpt": "assistant"}


def plain_messages(value: Any, config: ChatConfig) -> list[dict[str, Any]]:
    """Return a conversation as a list of messages with ``role`` and, but for calls of tools, ``content``.

    Args:
        value: what a record holds: messages with ``role`` and ``content``, or with ``from`` and ``value``.
        config: with the names of roles.

    Raises:
        BadRecord: what is no conversation; it says which message.
    """
    if not isinstance(value, list) or not value:
        raise BadRecord(f"a conversation is {_kind(value)}, not a list of messages")
    return [_message(i, message, config) for i, message in enumerate(value, start=1)]


def _message(i: int, message: Any, config: ChatConfig) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRecord(f"message {i} is {_kind(message)}, not a mapping with role and content")
    by_role = message.get("role") is not None  # columns that mix both shapes have null in the other's keys
    role_key, content_key = ("role", "content") if by_role else ("from", "value")
    names = {**{role: role for role in ROLES}, **OTHER_NAMES, **config.roles}
    role = message.get(role_key)
    if not isinstance(role, str) or role not in names:
        raise BadRecord(
            f"message {i} has the unknown role {role!r}; known: {', '.join(names)}; "
            "give it a meaning, as in chat: {roles: {bot: assistant}}"
        )
    rest = {key: each for key, each in message.items() if key not in ("role", "content", "from", "value")}
    plain: dict[str, Any] = {key: _plain(each) for key, each in rest.items() if each is not None}
    if message.get(content_key) is not None:
        plain = {"content": _content(i, message[content_key]), **plain}
    elif not plain.get("tool_calls"):
        raise BadRecord(f"message {i} ({role}) has no {content_key!r}, and calls no tool")
    return {"role": names[role], **plain}


def _content(i: int, content: Any) -> str:
    """Return the text of a message; that of several parts is joined."""
    if isinstance(content, str):
        return str(content)
    if not isinstance(content, list):
        raise BadRecord(f"the content of message {i} is {_kind(content)}, not text or a list of parts")
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or (isinstance(part, Mapping) and part.get("type", "text") != "text"):
            raise BadRecord(f"a part of message {i} is {_kind(part)}; parts of text alone can be trained on")
        texts.append(text)
    return "".join(texts)


def plain_tools(value: Any) -> list[Any] | None:
    """Return the tools of a record, a list or JSON of one; None if there are none.

    Raises:
        BadRecord: what is no list of tools.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRecord(f"its tools are not JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise BadRecord(f"its tools are {_kind(value)}, not a list of schemas")
    return [_plain(tool) for tool in value] or None


def _plain(value: Any) -> Any:
    """Return values of a file as the ordinary ones that templates and JSON know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Number):
        return json.loads(value.spelling)
    return str(value) if isinstance(value, str) else value


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
