"""Images of a run: where they come from (``sources``, ``listing``, ``tables``, ``tars``) and how one is opened
(``decoding``, ``ranges``).
"""

from jsfree.images.decoding import load_image
from jsfree.images.sources import Look, evaluation_samples, images_of_a_round, look_at, training_samples

__all__ = ["Look", "evaluation_samples", "images_of_a_round", "load_image", "look_at", "training_samples"]
