"""Settings for every test: no network, quiet, and Hypothesis that gives the same examples every time in CI."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import hypothesis
import pytest
from filelock import FileLock

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with all text found on this machine: gathered once, by one of the processes that run tests."""
    from mixer.sources.local import COLLECTIONS, gather

    is_alone = "PYTEST_XDIST_WORKER" not in os.environ
    base = tmp_path_factory.getbasetemp() if is_alone else tmp_path_factory.getbasetemp().parent
    with FileLock(base / "gathered.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(base / "gathered"))
        for name in COLLECTIONS:
            gather(name)
    return base / "gathered"
