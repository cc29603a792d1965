"""jsfree: judge-free self-improvement for multimodal language models (arXiv 2411.17760).

This package is the method; it knows no Ray. ``ray_jobs`` runs it on a cluster, ``serve`` answers HTTP.
"""

from importlib.metadata import version

__version__ = version("jsfree")
