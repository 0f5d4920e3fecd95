"""The fingerprint of a curriculum: a digest of all that shapes its decisions and batches."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from mixer.config.policy import GuardConfig
from mixer.config.probes import OF_GAP

if TYPE_CHECKING:
    from mixer.config.curriculum import Curriculum

NEWER = (  # fields with defaults that runs of earlier releases behave by
    ("phases", "random_decay", None),
    ("phases", "after_random", "stay"),
    ("policy", "eta_decay", "none"),
    ("policy", "eta_decay_over", "run"),
    ("tokenizer", "kind", "bpe"),
    ("tokenizer", "vocab_size", None),
    ("tokenizer", "separator_id", None),
    *(("guard", key, GuardConfig.model_fields[key].default) for key in OF_GAP),
)


def fingerprint_of(curriculum: Curriculum) -> str:
    """Return the digest of a curriculum, hex [32]; ``Curriculum.fingerprint`` says what counts."""
    left_out = {"prepared", "retries"} | (set() if curriculum.is_planned else {"total_steps"})
    data = curriculum.model_dump(mode="json", exclude=left_out)
    if not curriculum.holdout:
        del data["holdout"]
    if curriculum.guard in (None, GuardConfig()):
        del data["guard"]
    for key in ("probes", "targets"):
        if not data[key]:
            del data[key]
    if not curriculum.has_epoch_limits:
        del data["max_epochs"]
    for part, key, default in NEWER:
        if data.get(part) is not None and data[part].get(key) == default:
            data[part].pop(key, None)
    for source in (*data["sources"], *data.get("targets", ())):
        if not curriculum.has_epoch_limits or source["max_epochs"] == "inherit":
            del source["max_epochs"]
        for key in ("role", "on_failure", "on_bad_record", "max_bad_records"):
            del source[key]
        for key in ("token_ids", "rows", "max_tokens", "token_files", "sample_by", "field"):
            if source[key] is None:
                del source[key]
        if "token_files" in source:
            for key in ("path", "mask"):  # places; what lies there is in the fingerprint of the rows
                del source["token_files"][key]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
