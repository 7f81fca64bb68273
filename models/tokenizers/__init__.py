"""Images in, tokens out: one file per tokenizer, one contract in `base.py`."""
