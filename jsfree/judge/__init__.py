"""Asks a language model with an OpenAI-compatible API to judge captions: cached, rate-limited and within a budget."""
