"""CLIP as a frozen encoder: its files, its towers and its weights."""
