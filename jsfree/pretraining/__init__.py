"""Pre-training of MiniWorld's captioner and CLIP."""
