"""The memory of runs: private. Reads what runs leave. Start at `recorder.py`; `entangle.records` is its door.

::

    a run begins   recorder.py      a segment: what runs, written down at once, its file locked while the run lasts
    a run ends     recorder.py      what became of it, read from the table, added to the segment in one write
    somebody looks binding.py       segments become rows of records.sqlite, one transaction each
                   views.py         rows become runs, nodes, values
                   drawing/         … and those pictures and documents
    a graph wants  gremlin.py       … or vertices and edges of a Gremlin server
"""
