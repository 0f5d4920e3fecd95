"""Text for the laboratory, as one JSON-lines file for each source: real text, and three planted sources.

``python`` is what every machine with this project's environment has. ``debian`` is public text from Debian packages,
fetched by name with ``apt-get download`` and unpacked with ``dpkg-deb -x``, which need no root; 45 MB altogether.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import itertools
import json
import re
import shutil
import string
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from mixer.sources.local import COLLECTIONS, gather
from mixer.system.files import cache_root

PIECE_CHARACTERS = 3_000  # long files are cut at blank lines into documents of about this length
NOISE, GULLY, ECHO = "noise", "gully", "echo"
PLANTED = (NOISE, GULLY, ECHO)

Texts = Iterator[str]


class NoCorpusError(Exception):
    """A corpus that this machine cannot have; the message says why."""


def corpus(name: str, *, echo_of: str, seed: int = 0) -> dict[str, Path]:
    """Return the file of each source of a corpus, real ones first; made once and kept in the cache.

    Args:
        name: ``python`` or ``debian``.
        echo_of: the real source that the planted ``echo`` nearly repeats.
        seed: of the planted sources.

    Raises:
        NoCorpusError: Debian's tools are not on this machine, or reach no packages.
    """
    folder = cache_root() / "laboratory" / name
    makers = {"python": _python, "debian": _debian}[name](folder)
    files = {source: _kept(folder / f"{source}.jsonl", texts) for source, texts in makers.items()}
    planted: dict[str, Callable[[], Texts]] = {
        NOISE: lambda: _noise(seed),
        GULLY: lambda: _gully(read_texts(files[echo_of])),
        ECHO: lambda: _echo(read_texts(files[echo_of]), seed),
    }
    return files | {source: _kept(folder / f"{source}-{seed}.jsonl", texts) for source, texts in planted.items()}


def read_texts(path: Path) -> Texts:
    """Yield the documents of a source's file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def is_held_out(text: str, share: float = 0.1) -> bool:
    """Whether a document is never trained on: decided by a hash of its text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=b"laboratory").digest()
    return int.from_bytes(digest, "little") < share * 2**64


def _kept(path: Path, texts: Callable[[], Texts]) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            for text in _distinct(texts()):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        partial.replace(path)
    return path


def _distinct(texts: Iterable[str], limit: int = 8_000_000) -> Texts:
    seen: set[bytes] = set()
    for text in texts:
        digest = hashlib.blake2b(text.encode(errors="ignore"), digest_size=16).digest()
        if len(text.strip()) >= 20 and digest not in seen:
            seen.add(digest)
            limit -= len(text)
            if limit < 0:
                return
            yield text.encode(errors="ignore").decode()


def _pieces(text: str) -> Texts:
    """Cut a long text at blank lines."""
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if piece and len(piece) + len(paragraph) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece += paragraph.rstrip()[:PIECE_CHARACTERS] + "\n\n"
    yield piece


# -- planted -----------------------------------------------------------------------------------------------------------


def _noise(seed: int) -> Texts:
    rng = np.random.default_rng([seed, 1])
    letters = np.array(list(string.ascii_letters + string.digits + string.punctuation + " \n"))
    for _ in range(2_000):
        yield "".join(rng.choice(letters, size=500))


def _gully(texts: Texts) -> Texts:
    """A handful of documents, of which a study takes 6 kB: read many times, and soon known by heart."""
    kept = (text[:2_000] for text in texts if len(text) > 1_500 and not is_held_out(text[:2_000]))
    yield from itertools.islice(kept, 30)


def _echo(texts: Texts, seed: int) -> Texts:
    """Another source again, with one word in fifty replaced: nothing new to learn beside it."""
    rng = np.random.default_rng([seed, 2])
    for text in texts:
        if is_held_out(text):
            continue  # or its near copy would be trained on
        words = text.split(" ")
        for i in np.flatnonzero(rng.random(len(words)) < 0.02):
            words[i] = words[rng.integers(len(words))]
        yield " ".join(words)


# -- what every machine has --------------------------------------------------------------------------------------------


def _python(_folder: Path) -> dict[str, Callable[[], Texts]]:
    def collection(name: str) -> Callable[[], Texts]:
        return lambda: (piece for text in read_texts(gather(name, 8_000_000)) for piece in _pieces(text))

    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    makers = {name: collection(name) for name in COLLECTIONS}
    return makers | {
        "tests": lambda: _files(library / "test", "*.py", skip="\0"),
        "packages": lambda: _files(packages, "*.py"),
        "headers": lambda: _files(packages, "*.h"),
        "stubs": lambda: _files(packages, "*.pyi"),
        "cython": lambda: _files(packages, "*.p[yx][xd]"),
        "c": lambda: _files(packages, "*.c"),
    }


def _files(folder: Path, pattern: str, skip: str = "/test") -> Texts:
    """Yield pieces of files in an order by hash, so that a limit keeps some of every package."""
    found = [path for path in folder.rglob(pattern) if skip not in str(path.relative_to(folder))]
    found.sort(key=lambda path: hashlib.blake2b(str(path.relative_to(folder)).encode()).digest())
    for path in found:
        try:
            yield from _pieces(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue


# -- Debian's packages -------------------------------------------------------------------------------------------------

PACKAGES = (
    *("dict-foldoc", "dict-jargon", "dict-gcide", "dict-wn", "fortunes", "anarchism", "perl-doc", "git-doc"),
    *(
        "postgresql-doc-15",
        "manpages",
        "manpages-dev",
        "vim-runtime",
        "linux-libc-dev",
        "node-lodash",
        "libjs-jquery-ui",
    ),
)


def _debian(folder: Path) -> dict[str, Callable[[], Texts]]:
    root = folder / "packages"
    missing = [package for package in PACKAGES if not (root / package).is_dir()]
    if missing:
        _download(missing, root)
    share = {package: root / package / "usr/share" for package in PACKAGES}
    return {
        "gcide": lambda: _dictionary(share["dict-gcide"] / "dictd/gcide"),
        "wordnet": lambda: _dictionary(share["dict-wn"] / "dictd/wn"),
        "foldoc": lambda: _dictionary(share["dict-foldoc"] / "dictd/foldoc"),
        "jargon": lambda: _dictionary(share["dict-jargon"] / "dictd/jargon"),
        "fortunes": lambda: _fortunes(share["fortunes"] / "games/fortunes"),
        "anarchism": lambda: _pages(share["anarchism"]),
        "postgres": lambda: _pages(share["postgresql-doc-15"]),
        "git": lambda: _pages(share["git-doc"]),
        "perl": lambda: _files(share["perl-doc"], "*.pod"),
        "vim": lambda: _files(share["vim-runtime"] / "vim", "*.txt"),
        "manuals": lambda: _zipped([share["manpages"] / "man", share["manpages-dev"] / "man"], "*.gz"),
        "changelogs": lambda: _zipped(list(share.values()), "changelog*.gz"),
        "headers": lambda: _files(root / "linux-libc-dev/usr/include", "*.h"),
        "javascript": lambda: _files(root, "*.js", skip=".min."),
    }


def _download(packages: list[str], root: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NoCorpusError(f"the Debian corpus needs {tool}, which this machine has not; use --corpus python")
    downloads = root / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for package in packages:
        done = subprocess.run(
            ["apt-get", "download", package], cwd=downloads, capture_output=True, text=True, check=False
        )
        found = sorted(downloads.glob(f"{package}_*.deb"))
        if done.returncode or not found:
            raise NoCorpusError(
                f"apt-get could not download {package}: {done.stderr.strip()[-300:]}; run `apt-get update` first, "
                "or use --corpus python"
            )
        partial = root / f".{package}"
        subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(partial)], check=True)
        partial.rename(root / package)
        found[-1].unlink()


def _dictionary(path: Path) -> Texts:
    """Yield a dictionary's entries in ANDREA's shape, ``> define X`` and ``< X is ...``."""
    data = gzip.decompress(path.with_suffix(".dict.dz").read_bytes())
    for line in path.with_suffix(".index").read_text(encoding="utf-8").splitlines():
        word, start, length = line.split("\t")[:3]
        if word.startswith("00-database"):
            continue
        at = _number(start)
        entry = data[at : at + _number(length)].decode(errors="ignore")
        yield f"> define {word}\n< {word} is {' '.join(entry.split())}\n"


def _number(digits: str) -> int:
    """Return a number of dictd's index: base 64, most significant digit first."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    value = 0
    for digit in digits:
        value = value * 64 + alphabet.index(digit)
    return value


def _fortunes(folder: Path) -> Texts:
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".dat", ".u8")):
        yield from path.read_text(encoding="utf-8", errors="ignore").split("\n%\n")


def _pages(folder: Path) -> Texts:
    for path in sorted(folder.rglob("*.html")):
        text = re.sub(r"(?is)<(script|style|head).*?</\1>", "", path.read_text(encoding="utf-8", errors="ignore"))
        text = html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"(?i)</(p|div|h\d|li|tr|pre)>", "\n\n", text)))
        yield from _pieces(re.sub(r"[ \t]+", " ", text))


def _zipped(folders: list[Path], pattern: str) -> Texts:
    for folder in folders:
        for path in sorted(path for path in folder.rglob(pattern) if path.is_file() and not path.is_symlink()):
            yield from _pieces(gzip.decompress(path.read_bytes()).decode(errors="ignore"))
