"""Measurements of this project on the machine at hand: `python -m benchmarks [name ...]`; README.md says how to read them."""
