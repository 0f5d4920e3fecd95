"""The HTTP service: weights and batches for trainers on other machines. Not built yet; the library stands alone."""
