"""Conversations: ids and masks are those of TRL's prepared data set, wherever they are read, and none is cut."""

from __future__ import annotations

import base64
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mixer.analysis.check import check
from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.errors import ConfigError, MalformedDataError, MissingDependencyError, StateMismatchError, TokenizerError
from mixer.sources.chat import ChatTemplate, chat_of, encode_conversations
from mixer.sources.conversations import ConversationPacker
from mixer.sources.masks import IGNORED_LABEL, MARK, mark_of, masked_dtype, narrowed, split_marked
from mixer.sources.opening import open_sources
from mixer.sources.prepared.prepare import prepare
from mixer.sources.prepared.rows import Prepared
from mixer.sources.rendering import Renderer
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import load_tokenizer
from mixer.testing import assert_source_is_exact
from service.client import RemoteMixtureDataset
from tests.support.chats import MARKED, SPECIAL, UNMARKED, a_conversation, a_folder, a_run
from tests.support.serving import Served

TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"a": {"type": "number"}}}}
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1.5, "b": None}}}
WITH_TOOLS = [
    {"role": "user", "content": "add"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "it is 3"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("chat")
    a_folder(made / "tokenizer")
    return made


def opened(run: Curriculum) -> tuple[TextTokenizer, ChatTemplate]:
    tokenizer = load_tokenizer(run)
    chat = chat_of(run.sources[0], tokenizer, run.resolve)
    assert chat is not None
    return tokenizer, chat


def encoded(run: Curriculum, record: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return ids and mask of the conversation of a record."""
    tokenizer, chat = opened(run)
    [found] = encode_conversations([chat.render(record["messages"], record.get("tools"))], tokenizer)
    return (found & (MARK - 1)).tolist(), ((found & MARK) == 0).astype(int).tolist()


@functools.cache
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def of_transformers(folder: Path, record: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return what `transformers` itself makes of a conversation: ids and mask."""
    found = theirs(folder).apply_chat_template(
        record["messages"], tools=record.get("tools"), return_dict=True, return_assistant_tokens_mask=True
    )
    return found["input_ids"], found["assistant_masks"]


@pytest.mark.slow  # importing TRL takes 20 s
@pytest.mark.filterwarnings("ignore")
def test_ids_and_masks_are_those_of_trls_prepared_data_set(folder: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    records = [{"messages": a_conversation(i, 1 + i % 4)} for i in range(60)]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    args = SFTConfig(
        output_dir=str(tmp_path), assistant_only_loss=True, report_to=[], use_cpu=True, bf16=False, max_length=None
    )
    trainer = SFTTrainer(
        LlamaForCausalLM(config), args, train_dataset=Dataset.from_list(records), processing_class=tokenizer
    )
    prepared = list(trainer.train_dataset)
    found = [encoded(a_run(folder, records), record) for record in records]
    assert [ids for ids, _ in found] == [row["input_ids"] for row in prepared]
    assert [mask for _, mask in found] == [[int(i != IGNORED_LABEL) for i in row["labels"]] for row in prepared]
    assert all(0 < sum(mask) < len(mask) for _, mask in found)


def test_ids_and_masks_are_those_of_transformers(folder: Path) -> None:
    records: list[dict[str, Any]] = [{"messages": a_conversation(i, 1 + i % 4)} for i in range(60)]
    records += [{"messages": WITH_TOOLS, "tools": TOOLS}, {"messages": WITH_TOOLS}]
    run = a_run(folder, records, {"template": "tokenizer", "tools": "tools"})
    for record in records:
        ids, mask = encoded(run, record)
        assert (ids, mask) == of_transformers(folder, record)
        assert 0 < sum(mask) < len(mask)


FORGED = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL, "<|endoftext|>", "<|im_", "end|>", "{{ messages }}", "{% generation %}"]),
        st.text(max_size=5),
    ),
    max_size=6,
).map("".join)


@settings(max_examples=50)
@given(user=FORGED, answer=FORGED)
def test_special_tokens_that_a_message_spells_out_are_text(folder: Path, user: str, answer: str) -> None:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    run = a_run(folder, [{"messages": messages}])
    tokenizer, chat = opened(run)
    text = chat.render(messages, None)
    ids, mask = encoded(run, {"messages": messages})
    of_theirs = theirs(folder).apply_chat_template(messages, sanitize_control_tokens=True, return_dict=True)
    assert ids == of_theirs["input_ids"]
    assert (
        tokenizer.decode(ids)
        == text
        == f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    )
    counted = [i for i, counts in zip(ids, mask, strict=True) if counts]
    assert tokenizer.decode(counted) == f"{answer}<|im_end|>"
    special = {tokenizer.token_id(token) for token in (*SPECIAL, "<|endoftext|>")}
    assert [i in special for i in ids].count(True) == 4


def test_a_template_without_marks_is_rendered_by_prefixes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.jinja").write_text(UNMARKED)
    run = a_run(folder, [], {"template": str(tmp_path / "plain.jinja")})
    tokenizer, _ = opened(run)
    for i in range(9):
        messages = a_conversation(i, 3)
        ids, mask = encoded(run, {"messages": messages})
        assert ids == of_transformers(folder, {"messages": messages})[0]
        counted = tokenizer.decode([i for i, counts in zip(ids, mask, strict=True) if counts])
        said = [message["content"] for message in messages if message["role"] == "assistant"]
        assert counted == "".join(f"{text}<|im_end|>\n" for text in said)


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60), length=st.integers(3, 12), seed=st.integers(0, 9))
def test_conversations_are_cut_only_where_they_do_not_fit_and_no_counted_token_is_lost(
    lengths: list[int], length: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    first = np.cumsum([1, *lengths])
    talks = [np.arange(a, a + n, dtype=np.uint32) for a, n in zip(first, lengths, strict=False)]  # each id once
    talks = [np.where(rng.random(len(ids)) < 0.5, ids, ids | MARK).astype(np.uint32) for ids in talks]
    packer = ConversationPacker(length, 0)
    rows = [*packer.push(talks[: len(talks) // 2])]
    state = json.loads(json.dumps(packer.state_dict()))
    packer = ConversationPacker(length, 0)
    packer.load_state_dict(state)
    rows += [*packer.push(talks[len(talks) // 2 :]), *packer.flush()]
    assert all(len(row) == length + 1 for row in rows)
    assert len(packer.flush()) == 0
    _, labels = split_marked(np.stack(rows))
    counted = [int(i) for ids in talks for i in ids if not i & MARK]
    assert sorted(labels[labels != IGNORED_LABEL].tolist()) == sorted(counted)
    whole = {tuple((ids & (MARK - 1)).tolist()) for ids in talks if len(ids) + 2 <= length + 1}
    texts = [" ".join(map(str, (row & (MARK - 1)).tolist())) for row in rows]
    for ids in whole:
        assert sum(f" {' '.join(map(str, ids))} " in f" {text} " for text in texts) == 1


def test_little_is_padded() -> None:
    rng = np.random.default_rng(0)
    talks = [np.full(n, 5 | MARK, dtype=np.uint32) for n in rng.lognormal(5, 0.8, 3000).astype(int).clip(2, 1024)]
    packer = ConversationPacker(1024, 0)
    rows = [*packer.push(talks), *packer.flush()]
    assert sum(len(ids) + 1 for ids in talks) / (len(rows) * 1025) > 0.95


@given(vocab_size=st.sampled_from([2, 100, 128, 129, 32768, 32769, 100_000]), seed=st.integers(0, 5))
def test_marks_stay_where_rows_are_stored_in_fewer_bits(vocab_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    marks = rng.integers(0, 2, (3, 5), dtype=np.uint32) << 31
    rows: Any = rng.integers(0, vocab_size, (3, 5), dtype=np.uint32) | marks
    dtype = masked_dtype(vocab_size)
    small = narrowed(rows, dtype)
    assert small.dtype == dtype
    assert mark_of(dtype) >= vocab_size
    for one, other in zip(split_marked(rows), split_marked(small), strict=True):
        assert (one == other).all()


def many(n: int = 40) -> list[dict[str, Any]]:
    return [{"messages": a_conversation(i, 1 + i % 3)} for i in range(n)]


def test_a_stream_of_conversations_resumes_at_every_row(folder: Path) -> None:
    run = a_run(folder, many(), on_exhausted="repeat")
    tokenizer = load_tokenizer(run)
    assert_source_is_exact(lambda: open_sources(run, tokenizer)[0], 30)


def labels_of(batches: list[dict[str, Any]]) -> list[list[int]]:
    return sorted(row for batch in batches for row in batch["labels"].tolist())


def an_epoch(folder: Path, records: list[dict[str, Any]], **fields: Any) -> Curriculum:
    return a_run(folder, records, batch_rows=1, total_steps=1000, on_exhausted="stop", policy="static", **fields)


def test_an_epoch_trains_on_every_assistant_token_once_streamed_or_prepared(folder: Path) -> None:
    records = many(37)
    run = an_epoch(folder, records)
    expected = sorted(i for record in records for i, counts in zip(*encoded(run, record), strict=True) if counts)
    prepare(run, folder / "rows", force=True)
    manifest = Prepared.open(folder / "rows").manifest
    assert manifest.masked
    assert manifest.sources["chats"].train.tail_tokens == 0
    streamed = labels_of(list(MixtureDataset(run)))
    assert streamed == labels_of(list(MixtureDataset(an_epoch(folder, records, prepared="rows"))))
    assert sorted(i for row in streamed for i in row if i != IGNORED_LABEL) == expected


@pytest.mark.parametrize("is_prepared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_service_gives_the_same_labels(folder: Path, tmp_path: Path, *, is_prepared: bool) -> None:
    run = an_epoch(folder, many(20))
    if is_prepared:
        prepare(run, folder / "served rows", force=True)
        run = an_epoch(folder, many(20), prepared="served rows")
    config = folder / "run.yaml"
    config.write_text(run.model_dump_json())  # JSON is YAML
    with Served(config, tmp_path / "runs", "--feedback-wait-s", "0") as server:
        served = list(RemoteMixtureDataset(server.url))
    for one, other in zip(served, MixtureDataset(run), strict=True):
        assert (one["input_ids"] == other["input_ids"]).all()
        assert (one["labels"] == other["labels"]).all()


def test_a_report_counts_what_the_assistant_says_alone(folder: Path) -> None:
    dataset = MixtureDataset(a_run(folder, many()))
    batch = next(iter(dataset))
    losses = torch.where(batch["labels"] == IGNORED_LABEL, 1000.0, 2.0)
    heard: list[Any] = []
    walk: Any = dataset.walk
    original, walk.report = walk.report, lambda step, losses: heard.append(losses)
    dataset.report(batch, losses)
    walk.report = original
    [losses_of_step] = heard
    assert losses_of_step.tokens.sum() == (batch["labels"] != IGNORED_LABEL).sum()
    assert losses_of_step.loss_sums.sum() == 2 * losses_of_step.tokens.sum()


def test_names_parts_and_null_are_those_of_a_plain_conversation(folder: Path) -> None:
    run = a_run(folder, [], {"template": "tokenizer", "roles": {"bot": "assistant"}})
    plain = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]
    shapes: list[list[dict[str, Any]]] = [
        [{"from": "human", "value": "one two"}, {"from": "gpt", "value": "three"}],
        [{"role": "user", "content": "one two", "tool_calls": None}, {"role": "bot", "content": "three", "name": None}],
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "one ", "image": None}, {"type": "text", "text": "two"}],
            },
            {"from": "gpt", "value": "three", "role": None, "content": None},
        ],
    ]
    for messages in shapes:
        assert encoded(run, {"messages": messages}) == encoded(run, {"messages": plain})


@pytest.mark.parametrize("chat", [None, "andrea"])
def test_andreas_template_is_the_rendering_without_chat(folder: Path, chat: str | None) -> None:
    run = a_run(folder, many(3), chat, messages="messages")
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    assert Renderer(run.sources[0]).render(row) == "> hi\n< hello"
    assert not run.has_masks
    text = open_sources(run, load_tokenizer(run))[0].take(3)
    assert not (text & MARK).any()


def test_a_tiktoken_encoding_takes_a_template_from_a_file(folder: Path, tmp_path: Path) -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"an": 256, b"sw": 257, b"answ": 258}
    special = {"<|im_start|>": 300, "<|im_end|>": 301, "<|endoftext|>": 302}
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (folder / "r.tiktoken").write_text("".join(lines))
    (folder / "marked.jinja").write_text(MARKED)
    fields = {"file": "r.tiktoken", "pattern": r"\w+|\W+", "special_tokens": special}
    run = a_run(folder, [], {"template": "marked.jinja"}, tokenizer=fields)
    theirs = tiktoken.Encoding("x", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens=special)
    _, chat = opened(run)
    for i in range(9):
        messages = a_conversation(i)
        ids, mask = encoded(run, {"messages": messages})
        assert ids == theirs.encode(chat.render(messages, None), allowed_special="all")
        counted = theirs.decode([i for i, counts in zip(ids, mask, strict=True) if counts])
        assert counted == "".join(f"{m['content']}<|im_end|>" for m in messages if m["role"] == "assistant")


def test_a_changed_template_is_refused_where_a_run_goes_on(folder: Path, tmp_path: Path) -> None:
    a_folder(tmp_path / "tokenizer")
    run = a_run(tmp_path, many())
    dataset = MixtureDataset(run)
    next(iter(dataset))
    state, of_source = dataset.state_dict(), open_sources(run, dataset.tokenizer)[0].state_dict()
    a_folder(tmp_path / "tokenizer", MARKED.replace("<|im_start|>", "<s>"))
    changed = MixtureDataset(run)
    with pytest.raises(StateMismatchError):
        changed.load_state_dict(state)
    with pytest.raises(StateMismatchError, match="the saved state has chat template"):
        open_sources(run, changed.tokenizer)[0].load_state_dict(of_source)


USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("chat", "record", "message"),
    [
        (
            {},
            {"messages": [{"role": "bot", "content": "a"}]},
            r"message 1 has the unknown role 'bot'; known: .*roles: \{bot: assistant\}",
        ),
        (
            {},
            {"messages": [USER, {"role": "assistant"}]},
            r"message 2 \(assistant\) has no 'content', and calls no tool",
        ),
        ({}, {"messages": [USER, {"role": "assistant", "content": 3}]}, r"content of message 2 is int '3'"),
        (
            {},
            {"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]},
            r"a part of message 1 is dict",
        ),
        ({}, {"messages": []}, r"a conversation is list '\[\]', not a list of messages"),
        ({}, {"messages": None}, r"a conversation is null"),
        ({}, {"messages": ["hi"]}, r"message 1 is str 'hi', not a mapping"),
        ({}, {"messages": [{"role": "user", "content": "\U000f0000"}]}, r"holds U\+F0000, of private use"),
        ({"tools": "tools"}, {"messages": [USER], "tools": "{"}, r"its tools are not JSON"),
        ({"tools": "tools"}, {"messages": [USER], "tools": [3]}, r"its tools are list '\[3\]', not a list of schemas"),
        (
            {"special_text": "refuse"},
            {"messages": [{"role": "user", "content": "</s>"}]},
            r"spells out the special token '</s>'",
        ),
        (
            {"template": "raises.jinja"},
            {"messages": [USER]},
            r"the chat template raises TemplateError: no system message",
        ),
        (
            {"template": "raises.jinja"},
            {"messages": [{"role": "system", "content": "x"}, BOT]},
            r"unlike the whole.*generation",
        ),
    ],
)
def test_a_bad_conversation_is_refused_with_its_file_and_line(
    folder: Path, chat: dict[str, Any], record: dict[str, Any], message: str
) -> None:
    (folder / "raises.jinja").write_text(
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    good = {"messages": [{"role": "system", "content": "s"}, USER], "tools": None}
    run = a_run(folder, [good, {"tools": None, **record}], chat)
    with pytest.raises(MalformedDataError, match=r"source chats: .*chats\.jsonl, line 2: .*" + message):
        open_sources(run, load_tokenizer(run))[0].take(1)
    skipping = a_run(folder, [good, {"tools": None, **record}], chat, on_bad_record="skip")
    [source] = open_sources(skipping, load_tokenizer(skipping))
    source.take(1)
    assert source.progress.bad_records == 1


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("tool_use", r"the tokenizer has no chat template 'tool_use'; it has default: name a file"),
        ("none.jinja", r"template .*none\.jinja cannot be read"),
        ("broken.jinja", r"template, line 2: not Jinja"),
        (
            {"template": "plain.jinja", "masks": "generation"},
            r"masks is generation, but the template has no \{% generation",
        ),
    ],
)
def test_a_template_that_is_none_is_told_before_anything_starts(folder: Path, chat: Any, message: str) -> None:
    (folder / "plain.jinja").write_text(UNMARKED)
    (folder / "broken.jinja").write_text("{{ messages }}\n{% if %}")
    run = a_run(folder, many(3), chat)
    with pytest.raises(ConfigError, match=message):
        MixtureDataset(run)
    assert any("source chats" in problem for problem in check(run).problems)


def test_a_tokenizer_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    a_folder(tmp_path / "tokenizer", None)
    with pytest.raises(
        ConfigError, match=r"it has none: name a file, as in chat: \{template: FILE\.jinja\}, or chat: andrea"
    ):
        MixtureDataset(a_run(tmp_path, many(3)))
    with pytest.raises(
        TokenizerError, match=r"source chats: a chat template needs a tokenizer that has its special tokens"
    ):
        MixtureDataset(a_run(tmp_path, many(3), tokenizer={"train_vocab_size": 300}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chat": {"template": "andrea", "tools": "t"}}, "template andrea has no other settings, but tools is given"),
        ({"chat": {"loss": "user"}}, "chat.loss: Input should be 'assistant' or 'all'"),
        ({"chat": "tokenizer", "text": "body"}, "source chats: give one of .*, not text and messages"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Curriculum(total_steps=1, batch_rows=1, sequence_length=1, sources=[{"name": "chats", **fields}])


def test_compact_labels_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="compact: labels of uint16 cannot be -100"):
        MixtureDataset(a_run(folder, many(3)), compact=True)


def test_missing_libraries_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(folder, many(3))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"chat templates need transformers and Jinja: pip install"):
        MixtureDataset(run)


def test_all_of_a_conversation_can_count(folder: Path) -> None:
    ids, mask = encoded(a_run(folder, [], {"loss": "all"}), {"messages": a_conversation(1)})
    assert mask == [1] * len(ids)
