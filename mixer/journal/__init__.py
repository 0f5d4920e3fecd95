"""The durable record of a walk: one chained JSON line per decision, report and pivot, and how to read it.

Imports ``config`` and what is below it. Start with ``file.Journal`` and ``schema``; ``lookup`` and ``tables`` read.
"""

from mixer.journal.file import Journal, read_journal

__all__ = ["Journal", "read_journal"]
