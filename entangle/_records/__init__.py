"""The memory of runs: private. Start at `recorder.py`; `entangle.records` is the door.

::

    a run begins    recorder.py     writes a log segment: what runs. Locked until the run ends
    a run ends      recorder.py     adds what became of it, read from the table, in one write
    a user looks    ingest.py       segments become rows of records.sqlite, one transaction each
                    queries.py      all SQL that reads those rows
                    reading.py      … as rows of Python: runs, tasks, nodes, values (`rows.py`)
                    views.py        … as what users hold: rows, with the ways through the graph
                    drawing/        … as pictures and documents
                    gremlin.py      … as vertices and edges of a Gremlin server
"""
