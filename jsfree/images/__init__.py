"""Images of a run: which there are and which are drawn (``sources``), and how one is opened (``decoding``).

Each kind of source has its lister (``folders``, ``llava``, ``tables``, ``tars``), which yields entries (``listing``);
``drawing`` puts them in the order of the seed. ``ranges`` has the addresses of images inside larger files, ``cells``
reads those in tables, and ``confinement`` keeps the paths of data files inside the folder that was configured.
"""

from jsfree.images.decoding import load_image
from jsfree.images.samples import Samples
from jsfree.images.sources import (
    Look,
    draw_evaluation,
    draw_training,
    evaluation_samples,
    images_of_a_round,
    look_at,
    training_samples,
)

__all__ = [
    "Look",
    "Samples",
    "draw_evaluation",
    "draw_training",
    "evaluation_samples",
    "images_of_a_round",
    "load_image",
    "look_at",
    "training_samples",
]
