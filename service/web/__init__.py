"""HTTP itself: the middleware that every request passes, tokens, limits, metrics, logs and the routes.

Start with ``middleware`` and ``routes``.
"""
