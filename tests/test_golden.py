"""Decisions and batches of forty small runs are those of the commit that wrote ``golden.json``, bit for bit.

``python -m tests.support.golden tests/golden.json`` writes it anew; a difference is a change of what users' runs do.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.golden import digests

KEPT = Path(__file__).with_name("golden.json")


def test_decisions_and_batches_are_those_that_were_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path))
    assert dict(digests()) == json.loads(KEPT.read_text(encoding="utf-8"))
