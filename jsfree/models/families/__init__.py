"""Families of image-language models: everything that differs between them, behind the interface ``base.Family``."""
