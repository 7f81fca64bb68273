"""The paper's evaluation protocols: what a pre-trained backbone is worth, one protocol per file."""
