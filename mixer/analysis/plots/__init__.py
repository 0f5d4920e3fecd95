"""Pictures of a walk: a page to look into, or one still picture.

Imports what ``analysis`` may. Start with ``view``, which says what is drawn; ``page`` and ``picture`` draw it.
"""

from __future__ import annotations

from mixer.analysis.plots.page import write_page
from mixer.analysis.plots.picture import write_picture

__all__ = ["write_page", "write_picture"]
