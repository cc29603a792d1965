"""Publishing a model: model card, upload, and comparison of an adapter with the merged weights."""
