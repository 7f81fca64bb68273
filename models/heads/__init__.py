"""What is put on top of a pre-trained backbone to evaluate it."""
