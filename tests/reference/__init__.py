"""Comparisons with numbers that the official code computed; no code of it is included."""
