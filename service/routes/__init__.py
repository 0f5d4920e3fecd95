"""Routes: they translate between HTTP and the library; decisions stay in ``mixer``."""
