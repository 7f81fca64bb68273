"""Measurements of this project on the machine at hand: `python -m benchmarks [name ...]`; see README.md."""
