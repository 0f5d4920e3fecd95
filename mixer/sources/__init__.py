"""Sources of token rows: where text or token ids come from, and how they become rows.

Imports ``config`` and what is below it; `datasets` is imported when a source that needs it is opened. Start with
``base.RowSource`` and ``opening.open_sources``; prepared rows are in ``prepared``.
"""

from mixer.sources.base import EndOfSource, Progress, RowSource
from mixer.sources.opening import check_sources, open_sources

__all__ = ["EndOfSource", "Progress", "RowSource", "check_sources", "open_sources"]
