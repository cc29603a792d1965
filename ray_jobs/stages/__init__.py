"""The stages of the method: captioning, scoring and selection."""
