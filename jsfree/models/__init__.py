"""Models: references, downloads, loading, prompts and saving."""
