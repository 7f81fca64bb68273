"""Stock Vision Transformers, run on rows of our choice."""
