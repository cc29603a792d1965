"""Pre-training of MiniWorld's models: a tiny CLIP and a tiny LLaVA captioner."""
