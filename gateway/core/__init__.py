"""Vocabulary: immutable values without I/O, clock or framework."""
