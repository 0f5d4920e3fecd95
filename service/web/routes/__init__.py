"""The routes: they translate between HTTP and the engines of ``service.runs``; decisions are made in ``mixer``."""
