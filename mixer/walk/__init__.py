"""The walk: it takes reports, and decides phase after phase what the next steps draw.

Imports ``policies``, ``journal`` and what is below them. Start with ``walk.Walk``; ``next_phase`` works out a decision,
``state`` is all that changes and its saved form, ``inbox`` keeps reports, ``recorder`` writes the journal.
"""

from mixer.walk.walk import Walk

__all__ = ["Walk"]
