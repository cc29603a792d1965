"""Prompts of the suites with a judge, one text file for each version."""
