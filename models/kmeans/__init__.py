"""K-means over patch features: the codebook."""
