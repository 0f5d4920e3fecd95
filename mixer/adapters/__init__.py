"""Thin adapters between ``MixtureDataset`` and what trainers expect of a loader; each names the trap that it avoids.

Imports ``dataset`` and what is below it, and a trainer's library in its own module alone. Start with
``loading.MixtureLoader``; ``trainer`` is for Hugging Face, ``titan`` for torchtitan.
"""
