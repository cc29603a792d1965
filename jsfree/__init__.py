"""jsfree: judge-free self-improvement for multimodal language models (arXiv 2411.17760).

This package contains the method and does not import Ray. ``ray_jobs`` runs it on a cluster, and ``serve`` is the HTTP
server.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("jsfree")
except PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "0+checkout"
