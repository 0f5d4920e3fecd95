"""What the documents name is there: files, folders, links and decision records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DOCUMENTS = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "benchmarks" / "README.md"])
RECORDS = sorted((ROOT / "docs" / "adr").glob("*.md"))
OURS = ("mixer", "service", "andrea", "tests", "benchmarks", "configs", "deploy", "docs", "examples")
FOLDERS = [folder for folder in OURS if (ROOT / folder).is_dir()]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def spelled(document: Path) -> list[str]:
    """Return what a document spells in backticks, code blocks left out."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def test_every_path_that_the_architecture_names_is_there() -> None:
    paths = [word for word in spelled(ARCHITECTURE) if re.fullmatch(r"[\w.]+/[\w./]*|\w+\.(py|toml)", word)]
    assert len(paths) > 60
    assert [path for path in paths if not ((ROOT / path).exists() or (ROOT / "mixer" / path).exists())] == []


@pytest.mark.parametrize("package", ["mixer", "service"])
def test_the_picture_of_the_house_has_every_module(package: str) -> None:
    picture = re.findall(r"^```text\n(.*?)^```", ARCHITECTURE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[0]
    words = set(re.findall(r"\w+", picture))
    there = {
        path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - {"__init__"} - words == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_of_ours_that_a_document_names_is_there(document: Path) -> None:
    paths = [word for word in spelled(document) if re.fullmatch(rf"({'|'.join(OURS)})/[\w./-]+\.\w+", word)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_decision_records_are_numbered_without_a_gap_and_fill_a_page() -> None:
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))
    for path in RECORDS:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {int(path.name[:4])}. ")
        assert len(lines) <= 60, path.name
        parts = [part for line in lines for part in re.findall(r"^\*\*(Context|Decision|Consequence|Rejected)", line)]
        assert parts == ["Context", "Decision", "Consequence", "Rejected"], path.name


def test_every_mention_of_a_decision_record_names_one_that_is_there() -> None:
    numbers = {int(path.name[:4]) for path in RECORDS}
    sources = [
        path for folder in FOLDERS for suffix in ("py", "md", "pyx") for path in (ROOT / folder).rglob(f"*.{suffix}")
    ]
    mentions = 0
    for path in [*sources, ROOT / "README.md", ROOT / "pyproject.toml"]:
        text = path.read_text(encoding="utf-8")
        files = re.findall(r"adr/(\d{4}-[\w-]+\.md)", text)
        assert [name for name in files if not (ROOT / "docs" / "adr" / name).exists()] == [], path
        named = {int(number) for number in re.findall(r"\bADR (\d+)\b", text)}
        assert named <= numbers, path
        mentions += len(files) + len(named)
    assert mentions > 5
