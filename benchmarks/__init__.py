"""entangle beside its peers: the same work, on the same interpreter, in one session.

``python -m benchmarks`` runs everything, ``python -m benchmarks P1 P3`` a few rows, ``--ours``
only our side; ``--again 2`` holds a visit again when other processes of the machine disturbed it.
Linux only: it reads ``/proc``.

    rows/            what is measured: one function a row, written once for every contestant
    contestants.py   who takes part: entangle, the peers, and references such as one plain process
    warm.py          who takes part beside warm workers;  distant.py, where places are concerned
    work.py          the functions that are the tasks; decorated.py: as an entangle user writes them
    row.py           the words: Row, Line, and how one round is timed
    arena.py         the fresh process in which one contestant runs some rows
    contest.py       both orders: ours first and then the peers, then the peers first
    watch.py         the eye on a process tree: memory, and how many of its processes could run
    results.py       medians, targets, ``results.json``
    report.py        the tables on the terminal, for page and README;  picture.py, the chart
    web_app.py       a program of its own: a web app whose workers are killed

To add a benchmark, write a function with ``@row(...)`` in a file of ``rows/``: it is given a
contestant and the rounds to run, and yields what each round measured. A new peer is a subclass of
``Contestant`` with four short methods.
"""
