"""Publishing a model: card, upload and comparison of adapter and merged weights."""
