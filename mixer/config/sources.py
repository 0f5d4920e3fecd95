"""The settings of what is read: the sources, the tokenizer, and the retries when a network fails."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mixer.config.conditions import Condition
from mixer.config.policy import MAX_COUNT, MAX_WAIT_S, Epochs, Frozen

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
DEFAULT_SEPARATOR = "<|endoftext|>"
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
SampleBy = Literal["paragraph", "line", "document"]
ORIGINS = ("path", "data_files", "local")
RENDERINGS = ("text", "messages", "template", "token_ids", "rows")  # a source has one at most

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has one slash of two left; C:/ is a drive


def check_folder(folder: str) -> str:
    """Return a folder's path; raise ValueError for a URL, which would become a folder of that name."""
    if _URL.match(folder):
        raise ValueError(
            f"{folder!r} is a URL, but rows are prepared into a folder of this machine; "
            "name one, and copy it to where it is wanted"
        )
    return folder


class TokenFilesConfig(Frozen):
    """Files of token ids that another tool wrote, read as they are."""

    path: str = Field(
        min_length=1, description="file, folder or glob, relative to the config file; several are read in sorted order"
    )
    format: Literal["megatron", "bare", "llm.c", "nemo", "datatrove", "olmo", "litdata", "mds"] | None = Field(
        None, description="where the files do not say what they are"
    )
    dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"] | None = Field(
        None, description="how the ids are stored, where the files do not say it"
    )
    column: str = Field("tokens", description="of MDS: the one that holds the ids")
    mask: str | None = Field(
        None, description="files of a byte for each id, 0 where its loss does not count: file, folder or glob"
    )
    separator: Literal["insert", "present", "none"] = Field(
        "insert",
        description="`insert`: put one in after each document; `present`: each ends with one already; `none`: leave "
        "the documents as they are",
    )


class ChatConfig(Frozen):
    """How conversations are rendered, and which of their tokens are trained on."""

    template: str = Field(
        "tokenizer",
        min_length=1,
        description="`tokenizer`: its own chat template; another of its templates by name; a Jinja file, FILE.jinja, "
        "relative to the config file; or `andrea`: `> ` before what a user says and `< ` before an assistant",
    )
    roles: dict[str, str] = Field({}, description="what roles in the file are called in the template")
    tools: str | None = Field(None, description="column with the tools of a conversation, a list or its JSON")
    loss: Literal["assistant", "all"] = Field("assistant", description="whose tokens are trained on")
    masks: Literal["auto", "generation", "role"] = Field(
        "auto", description="how they are found: by {% generation %}, or by rendering the messages before each"
    )
    special_text: Literal["text", "refuse"] = Field(
        "text", description="what special tokens are that a message spells out: text, or a bad record"
    )
    variables: dict[str, Any] = Field({}, description="what the template is told, as in {enable_thinking: false}")

    @model_validator(mode="after")
    def _andrea_alone(self) -> Self:
        others = sorted(self.model_fields_set - {"template"})
        if self.template == "andrea" and others:
            raise ValueError(f"template andrea has no other settings, but {others[0]} is given; remove it")
        return self


class SourceConfig(Frozen):
    """One named stream of text: where it is, which rows and columns count, what happens when it runs dry."""

    name: Name
    role: Literal["source", "target"] = Field(
        "source", description="target: never drawn, its held-out loss is only measured, by probes"
    )
    path: str | None = Field(None, description="data set id on the Hugging Face hub, or a `datasets` builder name")
    config_name: str | None = Field(None, description="configuration of the data set (the hub calls it a subset)")
    split: str = "train"
    revision: str | None = None
    data_files: str | tuple[str, ...] | None = Field(None, description="files or globs, relative to the config file")
    local: str | None = Field(None, description="a collection of text gathered from this machine")
    sample_by: SampleBy | None = Field(
        None, description="plain text: what one document is; document: the whole file (default: paragraph)"
    )
    field: str | None = Field(None, description="JSON: key of the list of records, where a file is one object")
    text: str | None = Field(None, description="column with plain text (default: text)")
    messages: str | None = Field(None, description="column with a list of chat messages (default with chat: messages)")
    chat: ChatConfig | None = Field(
        None, description="render messages by a chat template and train on what the assistant says"
    )
    template: str | None = Field(None, description="text built from columns, as in '> define {word}'")
    token_ids: str | None = Field(None, description="column with documents that are lists of token ids already")
    rows: str | None = Field(
        None, description="column with lists of exactly sequence_length + 1 token ids, as they are"
    )
    where: dict[str, Condition] = Field(
        {}, description="keep rows whose columns equal these values, or compare with them: {ge: 3}, {not_null: true}"
    )
    on_exhausted: Literal["repeat", "stop", "error"] = "repeat"
    on_failure: Literal["stop", "suspend"] = Field("stop", description="when it stays unavailable after all retries")
    on_bad_record: Literal["stop", "skip"] = Field("stop", description="when a record cannot be read")
    max_bad_records: int = Field(
        100, ge=0, le=MAX_COUNT, description="records that may be skipped in an epoch, of each reader"
    )
    tokens: int | None = Field(None, gt=0, le=MAX_COUNT, description="number of distinct tokens, where known")
    max_tokens: int | None = Field(None, gt=0, le=MAX_COUNT, description="tokens that it may give in the whole run")
    token_files: TokenFilesConfig | None = Field(
        None, description="token files, memory-mapped as they are; written as `tokens: {path: ...}`"
    )
    max_epochs: Epochs | Literal["inherit"] | None = Field(
        "inherit", description="as often as it may be read; `null`: no limit; by default that of the run"
    )

    @model_validator(mode="before")
    @classmethod
    def _files_of_tokens(cls, data: Any) -> Any:
        """Take ``tokens: {path: ...}`` for token files, and ``tokens: 1000`` for their number."""
        if isinstance(data, Mapping) and isinstance(data.get("tokens"), Mapping):
            return {**data, "tokens": None, "token_files": data["tokens"]}
        return data

    @model_validator(mode="after")
    def _token_files_alone(self) -> Self:
        if self.token_files is not None:
            others = (*RENDERINGS, *ORIGINS, "where", "sample_by", "field")
            given = [key for key in others if getattr(self, key)]
            if given or self.on_bad_record != "stop" or self.role == "target":
                what = [*given, *(["on_bad_record"] if self.on_bad_record != "stop" else [])]
                raise ValueError(
                    f"source {self.name}: token files are read as they are, without {' or '.join(what)}; remove it"
                    if what
                    else f"source {self.name}: no document of token files is held out, so that it cannot be a target; "
                    "prepare it from its text"
                )
        return self

    @field_validator("chat", mode="before")
    @classmethod
    def _by_template(cls, chat: Any) -> Any:
        return {"template": chat} if isinstance(chat, str) else chat

    @model_validator(mode="after")
    def _one_origin_and_one_rendering(self) -> Self:
        if self.chat is not None and self.messages is None:
            self.__dict__["messages"] = "messages"  # frozen from here on
        if self.local is not None and (self.path is not None or self.data_files is not None):
            raise ValueError(f"source {self.name}: give either local or path/data_files, not both")
        given = [key for key in RENDERINGS if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"source {self.name}: give one of {', '.join(RENDERINGS[:-1])} and {RENDERINGS[-1]}, "
                f"not {' and '.join(given)}"
            )
        return self

    @property
    def renders_chat(self) -> bool:
        """Whether conversations are rendered by a chat template other than ANDREA's."""
        return self.chat is not None and self.chat.template != "andrea"

    @property
    def token_column(self) -> str | None:
        """The column of token ids of a source that is tokenised already; None if it is text."""
        return self.rows if self.token_ids is None else self.token_ids


class RetriesConfig(Frozen):
    """What to do when a network or server fails while a source is read."""

    attempts: int = Field(8, ge=1, le=1000, description="calls altogether before the source counts as unavailable")
    wait_s: float = Field(
        1.0, gt=0, le=MAX_WAIT_S, description="seconds before the second call; doubles each time, plus jitter"
    )
    max_wait_s: float = Field(
        300.0, gt=0, le=MAX_WAIT_S, description="longest wait; a server that asks for more is given up"
    )
    timeout_s: float = Field(20.0, gt=0, le=MAX_WAIT_S, description="longest silence of a server within one call")


class TokenizerConfig(Frozen):
    """A tokenizer as somebody has it, or the size of a vocabulary to train on the run's own sources."""

    file: str | None = Field(
        None,
        description="a `tokenizers` file, a folder, a SentencePiece model or a tiktoken file, relative to the config "
        "file; where there is no such file, the name of an encoding of tiktoken or an id on the Hugging Face hub",
    )
    hub: str | None = Field(None, description="id on the Hugging Face hub")
    revision: str | None = Field(None, description="commit, tag or branch of the hub")
    tiktoken: str | None = Field(None, description="name of an encoding of tiktoken, such as cl100k_base")
    pattern: str | None = Field(None, description="regular expression that splits text for a tiktoken file")
    special_tokens: dict[str, TokenId] | None = Field(None, description="ids of special tokens of a tiktoken file")
    train_vocab_size: int | None = Field(None, ge=260, le=1_000_000)
    kind: Literal["bpe", "harris"] = Field(
        "bpe", description="what is trained: merges of pairs (byte-level BPE), or Harris's segments, as ANDREA's are"
    )
    separator: str | None = Field(
        None, min_length=1, description="token written after each document; by default the tokenizer's own eos_token"
    )
    bos: Annotated[str, Field(min_length=1)] | Literal[False] | None = Field(
        None, description="token written before each document; by default as the folder's tokenizer_config.json says"
    )

    vocab_size: int | None = Field(
        None, gt=0, le=2**31, description="of token ids that were made elsewhere; with separator_id, instead of a file"
    )
    separator_id: int | None = Field(
        None, ge=0, lt=2**31, description="the token id that ends a document, with vocab_size"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        origins = [key for key in ("file", "hub", "tiktoken", "train_vocab_size") if getattr(self, key) is not None]
        if (self.vocab_size is None) != (self.separator_id is None):
            raise ValueError("tokenizer: vocab_size and separator_id go together; give both, or a file")
        if self.vocab_size is not None and self.separator_id is not None:
            others = (self.revision, self.pattern, self.special_tokens, self.separator, self.bos)
            if origins or self.kind != "bpe" or any(other is not None for other in others):
                raise ValueError("tokenizer: vocab_size and separator_id stand for a tokenizer; remove the others")
            if self.separator_id >= self.vocab_size:
                raise ValueError(
                    f"tokenizer: separator_id {self.separator_id} is outside the vocab_size of {self.vocab_size}"
                )
            return self
        for key, needs in (("revision", "hub"), ("pattern", "file"), ("special_tokens", "file")):
            if getattr(self, key) is not None and origins != [needs]:
                wrong = f", not with {origins[0]}; remove one of the two" if origins else ", which is missing"
                raise ValueError(f"tokenizer: {key} goes with {needs}{wrong}")
        if len(origins) != 1:
            raise ValueError(
                "tokenizer: give exactly one of file, hub, tiktoken and train_vocab_size"
                f"{', not ' + ' and '.join(origins) if origins else ''}"
            )
        if self.train_vocab_size is None and self.kind != "bpe":
            raise ValueError(
                f"tokenizer: kind {self.kind} says what to train, but {getattr(self, origins[0])} is trained already; "
                "remove one of the two"
            )
        is_json = self.file is not None and self.file.endswith(".json")
        if self.separator is None and (is_json or self.train_vocab_size is not None):  # these say none themselves
            self.__dict__["separator"] = DEFAULT_SEPARATOR  # frozen from here on
        return self
