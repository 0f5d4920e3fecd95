"""Logs as JSON lines on stderr: ours and those of libraries. What ``extra`` gives a message are fields of its line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}  # the last is uvicorn's


class JsonLines(logging.Formatter):
    """Writes a message as one JSON object: ``event``, its fields, ``level``, ``timestamp``, and the ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {"event": record.getMessage()}
        line |= {key: value for key, value in vars(record).items() if key not in _USUAL}
        line["level"] = record.levelname.lower()
        line["timestamp"] = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # orjson refuses the halves of characters that names of files may have


def set_up_logs() -> None:
    """Write JSON lines to stderr, from level ``info`` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
