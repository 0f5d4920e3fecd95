"""What follows from the seed alone: the kinds and lengths of phases, which rows a step draws, and their order.

Imports ``system`` and ``types`` alone. Start with ``phases``, then ``draws``.
"""
