"""The laboratory of ``benchmarks.mixing``: corpora, arms, one training run, and the report over many."""
