"""ANDREA, the reference model and trainer: a small decoder-only transformer fed by the mixer."""
