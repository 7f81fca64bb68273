"""Image sources: one contract (`base.py`), several layouts. `kinds.open_source` picks the one that options name."""
