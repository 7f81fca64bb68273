"""What the demo makes for itself: images, label maps and a CLIP."""
