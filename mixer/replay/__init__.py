"""A recorded run again: its phases, its decisions checked bit for bit, forks, and differences of two walks.

Imports ``walk``, ``journal`` and what is below them. Start with ``replay.Replay`` and ``verify``.
"""

from mixer.replay.replay import Replay

__all__ = ["Replay"]
