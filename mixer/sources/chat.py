"""Conversations as a model's own chat template renders them, with the spans of text whose loss counts.

`transformers` renders, as for its own users. Special tokens that the template writes are special; those that somebody
spells out in a message are text: before rendering they are replaced by characters of private use, and afterwards put
back, so that the two can be told apart wherever the template puts them.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.problems import suggestion
from mixer.config.sources import ChatConfig, SourceConfig
from mixer.errors import ConfigError, MissingDependencyError
from mixer.sources.batches import BadRecord
from mixer.sources.conversations import ConversationPacker
from mixer.sources.encoders import FIRST_NAME, Span
from mixer.sources.masks import marked
from mixer.sources.messages import plain_messages, plain_tools
from mixer.sources.packing import Packer
from mixer.sources.tokenizer import TextTokenizer
from mixer.types import TokenArray

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
FIRST_PLACEHOLDER = 0xF0000  # of plane 15, private use: stands for a control token that a message spells out
_RENDERING = threading.Lock()  # a template that tracks its assistant keeps what it found in itself

if hasattr(os, "register_at_fork"):  # no child is forked in the middle of it
    os.register_at_fork(
        before=_RENDERING.acquire, after_in_parent=_RENDERING.release, after_in_child=_RENDERING.release
    )


class ChatText(str):
    """A rendered conversation, as one reads it.

    Attributes:
        controls: where the template's special tokens stand, in order.
        counted: where text stands whose loss counts, in order.
    """

    controls: Sequence[Span]
    counted: Sequence[Span]

    def __new__(cls, text: str, controls: Sequence[Span] = (), counted: Sequence[Span] = ()) -> Self:
        """Return a text with its spans."""
        made = super().__new__(cls, text)
        made.controls, made.counted = controls, counted
        return made


@dataclass(frozen=True)
class ChatTemplate:
    """How the conversations of one source are rendered and which of their tokens count.

    Attributes:
        config: what the source says.
        template: in Jinja.
        tool_template: for conversations with tools, if that is another.
        special_tokens: by the names that templates know them by.
        controls: the tokenizer's special tokens.
        forgeable: those of them that the tokenizer makes of text, too.
    """

    config: ChatConfig
    template: str
    tool_template: str | None
    special_tokens: Mapping[str, str]
    controls: tuple[str, ...]
    forgeable: frozenset[str]

    @cached_property
    def digest(self) -> str:
        """Digest of all that shapes what is rendered and what counts, hex [32]."""
        parts = [self.config.model_dump(mode="json"), self.template, self.tool_template, dict(self.special_tokens)]
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()

    def render(self, messages: Any, tools: Any) -> ChatText:
        """Return a conversation as text.

        Args:
            messages: what the record holds of it.
            tools: what it holds of tools; None if there are none.

        Raises:
            BadRecord: messages or tools that are none, a template that raises, or one whose spans cannot be told.
        """
        chat = self._escaped(plain_messages(messages, self.config))
        schemas = self._escaped(plain_tools(tools))
        template = self.tool_template if schemas and self.tool_template is not None else self.template
        text, spans = self._rendered(chat, schemas, template)
        if self.config.loss == "all":
            spans = [(0, len(text))]
        return self._unescaped(text, spans)

    def _rendered(self, chat: list[dict[str, Any]], tools: Any, template: str) -> tuple[str, list[Span]]:
        """Return the text of a conversation and what an assistant says in it."""
        if self.config.loss == "all":
            return self._applied(chat, tools, template)[0], []
        if self.config.masks != "role" and GENERATION.search(template) is not None:
            return self._applied(chat, tools, template, tracks=True)
        text, _ = self._applied(chat, tools, template)
        spans = []
        for i in (i for i, message in enumerate(chat) if message["role"] == "assistant"):
            before, _ = self._applied(chat[:i], tools, template, prompts=True)
            after, _ = self._applied(chat[: i + 1], tools, template)
            if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
                raise BadRecord(
                    f"the chat template renders the conversation up to message {i + 1} unlike the whole, so that what "
                    "the assistant says cannot be told from its parts; mark it with {% generation %} in the template "
                    "(a file of your own: chat: {template: FILE.jinja}), or set chat: {loss: all}"
                )
            spans.append((len(before), len(after)))
        return text, spans

    def _applied(
        self, chat: list[dict[str, Any]], tools: Any, template: str, *, tracks: bool = False, prompts: bool = False
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        options = {**self.special_tokens, **self.config.variables}
        try:
            with _RENDERING:
                [text], spans = render_jinja_template(
                    conversations=[chat],
                    tools=tools,
                    chat_template=template,
                    return_assistant_tokens_mask=tracks,
                    add_generation_prompt=prompts,
                    **options,
                )
        except Exception as error:  # whatever a template does
            what = f" (for its first {len(chat)} messages)" if prompts else ""
            raise BadRecord(f"the chat template raises {type(error).__name__}: {str(error)[:200]}{what}") from error
        return text, [(start, end) for start, end in spans[0]] if tracks else []

    @cached_property
    def _in_text(self) -> re.Pattern[str]:
        """Finds control tokens, and the characters that are kept for them."""
        tokens = sorted(self.controls, key=len, reverse=True)
        kept = [f"[{chr(first)}-{chr(first + len(tokens))}]" for first in (FIRST_PLACEHOLDER, FIRST_NAME)]
        return re.compile("|".join([*map(re.escape, tokens), *kept]))

    def _escaped(self, value: Any) -> Any:
        """Return messages with each control token in their texts replaced by a character that stands for it."""
        if isinstance(value, str):
            return self._in_text.sub(self._placeholder, value)
        if isinstance(value, list):
            return [self._escaped(each) for each in value]
        if isinstance(value, Mapping):
            return {key: self._escaped(each) for key, each in value.items()}
        return value

    def _placeholder(self, found: re.Match[str]) -> str:
        token = found.group()
        if token not in self.controls:
            raise BadRecord(f"a message holds U+{ord(token):X}, of private use, which is kept for control tokens")
        if self.config.special_text == "refuse":
            raise BadRecord(f"a message spells out the special token {token!r}, which special_text: refuse refuses")
        if token in self.forgeable:
            raise BadRecord(
                f"a message spells out the special token {token!r}, and this tokenizer cannot tell it from the "
                "template's; take it out of the text"
            )
        return chr(FIRST_PLACEHOLDER + self.controls.index(token))

    def _unescaped(self, text: str, counted: Sequence[Span]) -> ChatText:
        """Put the control tokens of messages back, and note where those of the template stand."""
        pieces, controls = [], []
        places, shifts = [0], [0]  # from a place of the text on, so many characters are added
        end = 0
        for found in self._in_text.finditer(text):
            token = found.group()
            if token in self.controls:
                controls.append((found.start() + shifts[-1], found.end() + shifts[-1]))
                continue
            token = self.controls[ord(token) - FIRST_PLACEHOLDER]
            pieces += [text[end : found.start()], token]
            end = found.end()
            places.append(end)
            shifts.append(shifts[-1] + len(token) - 1)

        def moved(place: int) -> int:
            return place + shifts[bisect.bisect_right(places, place) - 1]

        spans = [(moved(start), moved(stop)) for start, stop in counted]
        return ChatText("".join([*pieces, text[end:]]), controls, spans)


def chat_of(source: SourceConfig, tokenizer: TextTokenizer, resolve: Callable[[str], Path]) -> ChatTemplate | None:
    """Return how the conversations of a source are rendered; None if none are, or as ANDREA's.

    Raises:
        ConfigError: no such template, or a tokenizer that cannot be used with one.
        MissingDependencyError: `transformers` or Jinja is not installed.
    """
    if not source.renders_chat:
        return None
    assert source.chat is not None
    try:
        import jinja2
        from transformers.utils import chat_template_utils
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"source {source.name}: chat templates need transformers and Jinja: pip install 'curriculum-mixer[chat]'"
        ) from error
    template, tool_template = _template(source, source.chat, tokenizer, resolve)
    for each in filter(None, (template, tool_template)):
        try:
            chat_template_utils._compile_jinja_template(each)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"source {source.name}: chat: template, line {error.lineno}: not Jinja: {error.message}"
            ) from error
        if source.chat.masks == "generation" and GENERATION.search(each) is None:
            raise ConfigError(
                f"source {source.name}: chat: masks is generation, but the template has no {{% generation %}}; write "
                "it around what the assistant says, or set masks: role"
            )
    controls, forgeable = tokenizer.controls
    return ChatTemplate(
        source.chat, template, tool_template, dict(tokenizer.companion.special_tokens), controls, frozenset(forgeable)
    )


def _template(
    source: SourceConfig, config: ChatConfig, tokenizer: TextTokenizer, resolve: Callable[[str], Path]
) -> tuple[str, str | None]:
    """Return the template of a source, and that for conversations with tools if it is another."""
    templates = tokenizer.companion.chat_templates
    if config.template.endswith((".jinja", ".jinja2", ".j2")):
        path = resolve(config.template)
        try:
            return path.read_text(encoding="utf-8"), None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"source {source.name}: chat: template {path} cannot be read: {error}") from error
    name = "default" if config.template == "tokenizer" else config.template
    if name not in templates:
        there = f"it has {', '.join(templates)}" if templates else "it has none"
        raise ConfigError(
            f"source {source.name}: the tokenizer has no chat template {name!r}{suggestion(name, templates)}; {there}: "
            "name a file, as in chat: {template: FILE.jinja}, or chat: andrea"
        )
    return templates[name], templates.get("tool_use") if name == "default" else None


def templates_digest(curriculum: Curriculum, tokenizer: TextTokenizer) -> str | None:
    """Return the digest of the chat templates of a run, hex [32]; None if it has none."""
    found = {source.name: chat_of(source, tokenizer, curriculum.resolve) for source in curriculum.read_sources}
    digests = {name: chat.digest for name, chat in found.items() if chat is not None}
    if not digests:
        return None
    return hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=16).hexdigest()


def encode_conversations(texts: Sequence[Any], tokenizer: TextTokenizer) -> list[TokenArray]:
    """Return the token ids of conversations, uint32 [number of tokens] each, marked where their loss does not count."""
    found = []
    for text, (ids, offsets) in zip(texts, tokenizer.encode_with_controls(texts), strict=True):
        places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        counts = np.zeros(len(ids), dtype=bool)
        for start, end in text.counted:
            counts |= (places[:, 0] < end) & (places[:, 1] > start)
        found.append(marked(np.array(ids, dtype=np.uint32), counts))
    return found


def packer_of(sequence_length: int, tokenizer: TextTokenizer, chat: ChatTemplate | None) -> Packer | ConversationPacker:
    """Return what makes rows of the documents of a source."""
    kind = Packer if chat is None else ConversationPacker
    return kind(sequence_length, tokenizer.separator_id)
