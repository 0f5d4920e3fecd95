"""Runs while they are served: deciding, building batches ahead, leases of steps, and waiting.

Start with ``engine.Engine``, then ``registry`` and ``builder``.
"""
