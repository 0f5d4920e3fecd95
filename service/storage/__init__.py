"""What a server keeps: the database, and the journals of its runs in files or in the database.

Start with ``store.Store`` and ``run_journal``.
"""
