"""Logs as JSON lines on stderr, ours and those of libraries; each key of ``extra`` becomes a field of the line."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.core import RESERVED_ATTRS, LogData
from pythonjsonlogger.json import JsonFormatter


class JsonLines(JsonFormatter):
    """Writes a message as one JSON object: ``event``, its fields, ``level``, ``timestamp``, and the ``exception``."""

    def __init__(self) -> None:
        super().__init__(
            ["message", "levelname"],
            rename_fields={"message": "event", "levelname": "level", "exc_info": "exception"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # an attribute of uvicorn's records
            timestamp=True,
        )

    def process_log_record(self, log_data: LogData) -> LogData:
        """Return the fields of a line, its level in lower case."""
        return {**log_data, "level": str(log_data["level"]).lower()}


def set_up_logs() -> None:
    """Write JSON lines to stderr, from level ``info`` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
