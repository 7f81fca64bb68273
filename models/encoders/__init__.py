"""Frozen encoders of patches: images [B, 3, H, W] -> features [B, N, D]."""
