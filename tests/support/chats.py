"""Chat templates, a tokenizer folder that has one, and conversations, for tests of conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from mixer.config.curriculum import Curriculum
from mixer.sources.tokenizer_training import train

MARKED = (
    "{%- if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}{{ message.content or '' }}"
    "{%- for call in message.tool_calls or [] %}<call>{{ call.function | tojson }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXTS = ["the assistant answers the user in whole words", "system tools call the function of the tool"] * 30


def a_folder(folder: Path, template: str | None = MARKED) -> Path:
    """Save a tokenizer with a chat template, as `transformers` does."""
    tokenizer = train(TEXTS, 330, "<|endoftext|>")
    tokenizer.add_special_tokens(SPECIAL)
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<s>")
    if template is not None:
        saved.chat_template = template
    saved.save_pretrained(folder)
    return folder


def a_run(folder: Path, records: Sequence[Any], chat: Any = "tokenizer", **fields: Any) -> Curriculum:
    """Return a run over one source of conversations, whose file and tokenizer lie in ``folder``."""
    (folder / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    if not (folder / "tokenizer").exists():
        a_folder(folder / "tokenizer")
    source = {"name": "chats", "data_files": "chats.jsonl", "chat": chat}
    source |= {key: fields.pop(key) for key in ("messages", "on_exhausted", "on_bad_record", "where") if key in fields}
    data = {"total_steps": 40, "batch_rows": 2, "sequence_length": 63, "tokenizer": "tokenizer", **fields}
    return Curriculum.from_data({"sources": [source], **data}, base_dir=folder)


def a_conversation(i: int, turns: int = 2) -> list[dict[str, Any]]:
    """Return messages of a system, users and assistants; some of them long, in several scripts."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "be brief"}] if i % 3 == 0 else []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"question {i}.{turn} é 你好 👩‍👩‍👧"})
        messages.append({"role": "assistant", "content": f"  answer {i}.{turn}\n" + "in words " * (i % 9)})
    return messages
