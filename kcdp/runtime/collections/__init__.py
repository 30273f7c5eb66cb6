"""Large collections: the same tags as by one process, made by many workers, on one machine or on a cluster.

``items`` and ``tables`` say what is tagged (files; pictures in Parquet files), in a settled order and cut into units.
``engine`` sends the units through ``worker``, a process that holds a tagger, and gives the tags back in order, each
once, whatever happens to a worker; ``ledger`` finds the picture that kills whoever reads it. ``cluster`` starts and
ends Ray. ``tagging`` writes rows, ``parts`` Parquet files that an interrupted run goes on with.

Importing this package loads nothing; Ray and PyArrow come with the extra ``ray``.
"""
