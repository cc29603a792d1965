"""Preference pairs in the formats of other projects: ``exporting`` from a run, ``importing`` into one.

``preferences`` has the pair that all formats have in common, ``formats`` writes and reads one record of each,
``placing`` stores its image, ``records`` reads files of records, ``card`` writes the data set card.
"""

from jsfree.exchange.exporting import Export, export
from jsfree.exchange.importing import UnusableRecord, preferences

__all__ = ["Export", "UnusableRecord", "export", "preferences"]
