"""What the machine needs and nothing of mixing: compiled loops, memory that is used again, threads, files.

Imports only ``mixer.types`` and ``mixer.errors``. Start with ``kernels``.
"""
