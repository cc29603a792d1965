"""Images of a run: where they come from (``sources``, ``listing``, ``tables``, ``tars``) and how one is opened
(``decoding``, ``ranges``).
"""

from jsfree.images.decoding import load_image
from jsfree.images.sources import evaluation_samples, training_samples

__all__ = ["evaluation_samples", "load_image", "training_samples"]
