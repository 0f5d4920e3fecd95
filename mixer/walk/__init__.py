"""The walk: it takes reports, and decides phase after phase what the next steps draw.

Imports ``policies``, ``journal`` and what is below them. Start with ``walk.Walk``; ``inbox`` keeps reports,
``decided`` and ``schedule`` the phases, ``recorder`` writes the journal, ``state`` saves and restores.
"""

from mixer.walk.walk import Walk

__all__ = ["Walk"]
