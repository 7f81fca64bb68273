"""What can be chosen: the tree of options, overrides of it, and presets."""
