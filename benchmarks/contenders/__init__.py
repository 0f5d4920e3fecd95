"""The contenders of ``benchmarks.delivery``: each in a process of its own, on the same rows."""
