"""Token rows made once by ``mixer prepare``, and memory-mapped by those who read them.

Imports what ``sources`` may. Start with ``rows`` to read, and ``prepare`` to write; ``manifest`` says what a
folder holds.
"""
