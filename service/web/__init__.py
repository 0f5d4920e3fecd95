"""HTTP itself: the middleware that every request passes, tokens, limits, metrics, logs and the routes.

Imports ``runs`` and what is below it. Start with ``middleware`` and ``routes``.
"""
