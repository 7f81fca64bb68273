"""VQ-KD (BEiT v2): its codebook, its training and its checkpoints."""
