"""Runs while they are served: deciding, building batches ahead, leases of steps, and waiting.

Imports ``dashboard``, ``storage``, ``wire`` and ``mixer``. Start with ``engine.Engine``, then ``registry`` and
``builder``.
"""
