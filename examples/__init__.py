"""One short file per trainer; each runs as it stands: ``python -m examples.ddp``."""
