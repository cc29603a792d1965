"""Preference pairs in the layouts that others use: out of a run (``exporting``) and into one (``importing``).

``preferences`` is what all layouts have in common, ``formats`` how each writes and reads one record, ``placing`` where
its image goes, ``records`` how files of records are read, ``card`` what is said of an exported set.
"""

from jsfree.exchange.exporting import Export, export
from jsfree.exchange.importing import Unusable, preferences

__all__ = ["Export", "Unusable", "export", "preferences"]
