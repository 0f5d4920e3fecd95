"""The routes: they translate between HTTP and engines; what is decided is decided in ``mixer``."""
