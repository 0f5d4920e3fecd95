"""What a server keeps: the database, and the journals of its runs in files or in the database.

Imports ``errors`` and ``mixer``. Start with ``store.Store`` and ``run_journal``.
"""
