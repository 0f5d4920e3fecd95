"""From phases to batches: which rows a step draws, who reads them, and how losses come back from all ranks.

Imports ``walk``, ``sources`` and what is below them. Start with ``coordinator``, then ``batch``.
"""
