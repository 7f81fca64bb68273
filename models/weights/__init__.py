"""Tensors in files, and networks as directories that timm reads."""
