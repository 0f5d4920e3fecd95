"""Decide, while a language model trains, how much of each text source is drawn next, and deliver those batches."""
