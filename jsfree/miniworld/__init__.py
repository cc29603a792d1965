"""MiniWorld: drawn scenes with exactly known contents, and a tiny LLaVA and a tiny CLIP pre-trained on them.

It is the default source of images: since the truth of every image is known, every claim of the method can be measured
on two CPU cores.
"""
