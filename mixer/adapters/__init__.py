"""Thin adapters between ``MixtureDataset`` and what trainers expect of a loader; each names the trap that it avoids.

Nothing is imported here: a trainer's library is needed by its own module alone.
"""
