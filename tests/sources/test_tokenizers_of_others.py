"""Tokenizers as people have them give the ids of the library that made them, whatever the text spells.

Nothing is downloaded: each vocabulary is trained here, on the Python installation's own text.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError, MissingDependencyError, StateMismatchError, TokenizerError
from mixer.sources.opening import open_sources
from mixer.sources.tokenizer import TextTokenizer, tokenizer_of
from mixer.sources.tokenizer_training import load_tokenizer, train
from tests.support.hub import serving

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<unk>", "<0x0A>", "▁"]
ODD = [
    "",
    " ",
    "\n\n\t ",
    "a\x00b\x07\x1b[0m",
    "👩‍👩‍👧‍👦 🇺🇳 e\u0301 é ﬁ Å Ⅷ",
    "\u202eright to left\u202c \ufeff\u200b",
    "مرحبا नमस्ते 你好 こんにちは",
    "   leading, trailing   ",
    "\U0010ffff\ue000",
    *SPECIAL,
    "".join(SPECIAL),
    "say <|im_start|>system\nobey</s><|im_end|> please",
]
PATTERN = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""


def real_documents(most: int = 3000) -> list[str]:
    """Return paragraphs of the standard library's source."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        found += [part for part in path.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    return found[:: max(1, len(found) // most)][:most]


DOCUMENTS = real_documents()
PIECES = st.one_of(
    st.text(), st.text(alphabet=st.characters(categories=["Cc", "So", "Zs", "Mn", "Lo"])), st.sampled_from(SPECIAL)
)
TEXTS = st.lists(st.lists(PIECES, max_size=4).map("".join), max_size=6)


@dataclass(frozen=True)
class Known:
    """A tokenizer of ours, the original library's ids, and the special ids that no text may have."""

    ours: TextTokenizer
    original: Callable[[str], list[int]]
    special: frozenset[int]


def a_run(folder: Path, tokenizer: Any, **fields: Any) -> Curriculum:
    (folder / "web.jsonl").write_text(json.dumps({"text": "some words of text"}) + "\n")
    data = {"total_steps": 9, "batch_rows": 1, "sequence_length": 4, "tokenizer": tokenizer, **fields}
    return Curriculum.from_data({**data, "sources": [{"name": "web", "data_files": "web.jsonl"}]}, base_dir=folder)


def a_sentencepiece_model(kind: str = "unigram", **options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in DOCUMENTS[:600] for line in text.splitlines()),
        model_writer=model,
        model_type=kind,
        vocab_size=600,
        byte_fallback=True,
        minloglevel=3,
        num_threads=1,
        **options,
    )
    return model.getvalue()


def a_byte_level_bpe() -> Tokenizer:
    tokenizer = train(DOCUMENTS[:600], 700, "<|endoftext|>")
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def a_folder(folder: Path, tokenizer: Tokenizer, **fields: Any) -> Path:
    """Save a tokenizer as `transformers` does."""
    names = {"eos_token": "</s>", "bos_token": "<s>", **fields}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def some_ranks() -> dict[bytes, int]:
    """Return the merges of a byte-level BPE as tiktoken has them: bytes and their rank."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [i for i in range(256) if i not in printable]
    as_byte = {chr(i): i for i in printable} | {chr(256 + n): i for n, i in enumerate(others)}
    vocabulary = train(DOCUMENTS[:600], 700, "<|endoftext|>").get_vocab()
    tokens = [token for token in sorted(vocabulary, key=vocabulary.__getitem__) if token != "<|endoftext|>"]
    return {bytes(as_byte[letter] for letter in token): rank for rank, token in enumerate(tokens)}


def ranks_file(folder: Path) -> Path:
    path = folder / "ranks.tiktoken"
    lines = (f"{base64.b64encode(token).decode()} {rank}" for token, rank in some_ranks().items())
    path.write_text("\n".join(lines) + "\n")
    return path


def _folder(folder: Path) -> Known:
    ours = load_tokenizer(a_run(folder, "mine"))
    theirs = AutoTokenizer.from_pretrained(folder / "mine")
    return Known(
        ours,
        lambda text: theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids,
        frozenset(theirs.all_special_ids),
    )


def known(kind: str, folder: Path) -> Known:
    if kind == "folder":
        a_folder(folder / "mine", a_byte_level_bpe())
        return _folder(folder)
    if kind == "json file":
        a_byte_level_bpe().save(str(folder / "tokenizer.json"))
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        return Known(
            load_tokenizer(a_run(folder, "tokenizer.json")),
            lambda text: theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids,
            frozenset(theirs.added_tokens_decoder),
        )
    if kind.startswith("sentencepiece"):
        (folder / "spm.model").write_bytes(a_sentencepiece_model(kind.split()[-1]))
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
        return Known(load_tokenizer(a_run(folder, "spm.model")), processor.encode, frozenset({1, 2}))
    if kind == "folder of sentencepiece":
        (folder / "mine").mkdir()
        (folder / "mine" / "tokenizer.model").write_bytes(a_sentencepiece_model("bpe"))
        names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (folder / "mine" / "tokenizer_config.json").write_text(json.dumps({**names, "add_bos_token": False}))
        return _folder(folder)
    special = {"<|endoftext|>": 1000, "<|im_start|>": 1001, "<|im_end|>": 1002}
    fields = {"file": str(ranks_file(folder)), "pattern": PATTERN, "special_tokens": special}
    encoding = tiktoken.Encoding("theirs", pat_str=PATTERN, mergeable_ranks=some_ranks(), special_tokens=special)
    return Known(load_tokenizer(a_run(folder, fields)), encoding.encode_ordinary, frozenset(special.values()))


KINDS = ["folder", "json file", "sentencepiece unigram", "sentencepiece bpe", "folder of sentencepiece", "tiktoken"]


@pytest.fixture(scope="module", params=KINDS)
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Known:
    return known(request.param, tmp_path_factory.mktemp("tokenizer"))


def test_ids_of_thousands_of_documents_are_the_original_librarys(each: Known) -> None:
    texts = [*DOCUMENTS, *ODD, *(text + odd for text in DOCUMENTS[:100] for odd in ODD)]
    assert len(texts) > 4000
    found = each.ours.encode(texts)
    assert [ids.tolist() for ids in found] == [each.original(text) for text in texts]


@settings(max_examples=60)
@given(texts=TEXTS)
def test_ids_of_any_text_are_the_original_librarys_and_none_is_special(each: Known, texts: list[str]) -> None:
    found = [ids.tolist() for ids in each.ours.encode(texts)]
    assert found == [each.original(text) for text in texts]
    assert not each.special & {i for ids in found for i in ids}
    assert each.ours.encode_joined(texts).tolist() == [i for ids in found for i in [*ids, each.ours.separator_id]]


def test_the_separator_is_the_tokenizers_own_and_is_spelled_out_where_rows_are_decoded(each: Known) -> None:
    ours = each.ours
    assert ours.separator_id in each.special
    rows = ours.encode_joined(["one and", "two"])
    assert ours.decode(rows).replace(" ", "") == f"oneand{ours.separator}two{ours.separator}"
    assert ours.vocab_size > rows.max()


def test_a_tokenizer_travels_as_text_and_between_processes(each: Known) -> None:
    for copy in (tokenizer_of(each.ours.to_json(), each.ours.separator), pickle.loads(pickle.dumps(each.ours))):
        assert copy.fingerprint == each.ours.fingerprint
        assert [ids.tolist() for ids in copy.encode(ODD)] == [ids.tolist() for ids in each.ours.encode(ODD)]
        assert copy.companion == each.ours.companion


@pytest.mark.parametrize(
    ("fields", "begins"), [({"add_bos_token": True}, True), ({"add_bos_token": False}, False), ({}, False)]
)
def test_documents_begin_with_bos_where_the_folder_says_so(
    tmp_path: Path, fields: dict[str, Any], begins: bool
) -> None:
    folder = a_folder(tmp_path / "mine", a_byte_level_bpe())
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, **fields}))
    [ids] = load_tokenizer(a_run(tmp_path, "mine")).encode(["hello"])
    plain = load_tokenizer(a_run(tmp_path, {"file": "mine", "bos": False}))
    assert ids.tolist() == [plain.token_id("<s>")] * begins + plain.encode(["hello"])[0].tolist()
    named = load_tokenizer(a_run(tmp_path, {"file": "mine", "bos": "<|im_start|>"}))
    assert named.encode_joined(["hello", ""]).tolist()[-2:] == [named.token_id("<|im_start|>"), named.separator_id]
    assert named.fingerprint != plain.fingerprint


def test_a_post_processor_that_adds_bos_counts_too(tmp_path: Path) -> None:
    tokenizer = a_byte_level_bpe()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    a_folder(tmp_path / "mine", tokenizer)
    said = json.loads((tmp_path / "mine" / "tokenizer_config.json").read_text())
    said.pop("add_bos_token", None)
    (tmp_path / "mine" / "tokenizer_config.json").write_text(json.dumps(said))
    text = "hello there"
    [ids] = load_tokenizer(a_run(tmp_path, "mine")).encode([text])
    assert ids.tolist() == AutoTokenizer.from_pretrained(tmp_path / "mine")(text).input_ids


def test_a_name_of_tiktoken_means_its_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library's own way to learn names: a module in the package ``tiktoken_ext``."""
    (tmp_path / "tiktoken_ext").mkdir()
    (tmp_path / "tiktoken_ext" / "ours.py").write_text(
        "from tests.sources.test_tokenizers_of_others import PATTERN, some_ranks\n"
        "ENCODING_CONSTRUCTORS = {'ours_base': lambda: {'name': 'ours_base', 'pat_str': PATTERN,"
        " 'mergeable_ranks': some_ranks(), 'special_tokens': {'<|endoftext|>': 800}}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tiktoken.registry, "ENCODING_CONSTRUCTORS", None)
    monkeypatch.setattr(
        tiktoken.registry, "_available_plugin_modules", tiktoken.registry._available_plugin_modules.__wrapped__
    )
    theirs = tiktoken.get_encoding("ours_base")
    for named in ("ours_base", {"tiktoken": "ours_base"}):
        ours = load_tokenizer(a_run(tmp_path, named))
        assert (ours.separator_id, ours.vocab_size) == (800, theirs.n_vocab)
        assert [ids.tolist() for ids in ours.encode(ODD)] == [theirs.encode_ordinary(text) for text in ODD]
    with pytest.raises(TokenizerError, match=r"tokenizer.tiktoken: 'nobodys' cannot be had.*ours_base"):
        load_tokenizer(a_run(tmp_path, {"tiktoken": "nobodys"}))


def test_an_id_of_the_hub_means_its_folder_as_of_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "0" * 39 + "1", "0" * 39 + "2"
    a_folder(tmp_path / old, a_byte_level_bpe())
    a_folder(tmp_path / new, a_byte_level_bpe(), eos_token="<|im_end|>")
    (tmp_path / new / "model.safetensors").write_bytes(b"large")
    with serving(tmp_path, "owner/model", new, "models") as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        newest = load_tokenizer(a_run(tmp_path, "owner/model"))
        pinned = load_tokenizer(a_run(tmp_path, {"hub": "owner/model", "revision": old}))
        assert not [request for request in hub.requests if "safetensors" in request]
        with pytest.raises(
            TokenizerError,
            match=r"no such file or folder: .*modle; nor can it be of the hub: .*'owner/modle' cannot be had",
        ):
            load_tokenizer(a_run(tmp_path, "owner/modle"))
    assert (newest.separator, pinned.separator) == ("<|im_end|>", "</s>")
    assert newest.fingerprint != pinned.fingerprint


def test_a_changed_tokenizer_is_refused_where_a_run_goes_on(tmp_path: Path) -> None:
    a_folder(tmp_path / "mine", a_byte_level_bpe())
    run = a_run(tmp_path, "mine")
    state = open_sources(run, load_tokenizer(run))[0].state_dict()
    a_folder(tmp_path / "mine", a_byte_level_bpe(), eos_token="<|im_end|>")
    [changed] = open_sources(run, load_tokenizer(run))
    with pytest.raises(StateMismatchError, match="the saved state has tokenizer "):
        changed.load_state_dict(state)


def folder_with(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def make(folder: Path) -> str:
        a_folder(folder / "mine", a_byte_level_bpe())
        change(folder / "mine")
        return "mine"

    return make


def a_file(name: str, data: bytes, **fields: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        (folder / name).write_bytes(data)
        return {"file": name, **fields} if fields else name

    return make


RANKS = {"pattern": r"\w+|\W+", "special_tokens": {"<|endoftext|>": 256}}
BYTES = "".join(f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256)).encode()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            folder_with(lambda f: (f / "tokenizer_config.json").unlink()),
            r"names no eos_token.*write `separator:`.*</s>",
        ),
        (
            folder_with(lambda f: (f / "tokenizer_config.json").write_text("{")),
            r"tokenizer_config\.json cannot be read",
        ),
        (folder_with(lambda f: (f / "tokenizer_config.json").write_text("[]")), r"is list, not a mapping"),
        (
            folder_with(lambda f: (f / "tokenizer.json").write_text("{}")),
            r"mine/tokenizer\.json is not a `tokenizers` JSON",
        ),
        (folder_with(lambda f: (f / "tokenizer.json").unlink()), r"mine has no tokenizer\.json, nor a vocabulary"),
        (
            folder_with(lambda f: (f / "tokenizer_config.json").write_text('{"eos_token": "</S>"}')),
            r"separator '</S>' is not in the vocabulary; did you mean '</s>'",
        ),
        (
            folder_with(lambda f: (f / "tokenizer_config.json").write_text('{"eos_token": "e"}')),
            r"separator 'e' is text to this tokenizer, so documents could forge it",
        ),
        (a_file("spm.model", b"\x00nothing"), r"spm\.model is not a SentencePiece model"),
        (a_file("r.tiktoken", BYTES), r"r\.tiktoken holds ranks alone; give `pattern`"),
        (a_file("r.tiktoken", BYTES + b"===\n", **RANKS), r"r\.tiktoken, line 257: not a token in base64"),
        (
            a_file("r.tiktoken", BYTES + b"YWI= 7\n", **RANKS),
            r"r\.tiktoken is not ranks of tiktoken: two tokens share an id",
        ),
        (a_file("r.tiktoken", BYTES[7:], **RANKS), r"the byte 0 has none"),
        (
            a_file("r.tiktoken", BYTES, pattern="(", special_tokens={"<|endoftext|>": 256}),
            r"not an encoding of tiktoken",
        ),
        (
            a_file("r.tiktoken", BYTES, pattern=r"\w+", special_tokens={"<|end|>": 256}),
            r"names no eos_token.*special tokens: <\|end\|>",
        ),
    ],
)
def test_what_is_no_tokenizer_is_named_with_what_to_do(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(a_run(tmp_path, make(tmp_path)))


def test_a_user_defined_symbol_is_text_and_no_separator(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(a_sentencepiece_model("bpe", user_defined_symbols=["<|end|>"], eos_id=-1))
    with pytest.raises(TokenizerError, match=r"names no eos_token.*special tokens: <s>"):
        load_tokenizer(a_run(tmp_path, "spm.model"))
    with pytest.raises(TokenizerError, match=r"separator '<\|end\|>' is text to this tokenizer"):
        load_tokenizer(a_run(tmp_path, {"file": "spm.model", "separator": "<|end|>"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give exactly one of file, hub, tiktoken and train_vocab_size"),
        ({"file": "a", "hub": "b"}, "not file and hub"),
        ({"file": "a", "revision": "b"}, "revision goes with hub, not with file"),
        ({"hub": "a", "pattern": "b"}, "pattern goes with file, not with hub"),
        ({"file": "a", "special_tokens": {"x": -1}}, "special_tokens.x: Input should be greater than or equal to 0"),
        ({"file": "a", "separator": ""}, "separator: String should have at least 1 character"),
    ],
)
def test_settings_that_say_nothing_or_too_much_are_refused(tmp_path: Path, fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        a_run(tmp_path, fields)


@pytest.mark.parametrize(
    ("library", "tokenizer"), [("sentencepiece", "spm.model"), ("tiktoken", "cl100k_base"), ("transformers", "mine")]
)
def test_a_library_that_is_missing_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, tokenizer: str
) -> None:
    (tmp_path / "spm.model").write_bytes(b"")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tokenizer.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match="pip install 'curriculum-mixer"):
        load_tokenizer(a_run(tmp_path, tokenizer))


def test_the_tokenizer_of_a_folder_counts_in_the_fingerprint_of_the_run_by_what_it_says(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path, each) for each in ("mine", {"file": "mine", "bos": "<s>"}, {"hub": "a/b"}, {"tiktoken": "gpt2"})
    ]
    assert len({run.fingerprint for run in runs}) == 4
    assert a_run(tmp_path, {"file": "mine"}).fingerprint == runs[0].fingerprint
