"""Image sources: listing, sampling and decoding images.

One lister per kind of source (``folders``, ``llava``, ``tables``, ``tars``) yields entries (``listing``), ``drawing``
sorts them by a hash keyed with the seed, and ``sources`` selects the images of each round and of the evaluation.
``decoding`` reads one image. ``ranges`` defines addresses of images inside larger files, ``cells`` reads images from
Parquet tables, and ``confinement`` restricts the paths in a data file to the configured folder.
"""
