"""entangle beside its peers: the same work, on the same interpreter, in one session.

``python -m benchmarks`` runs everything, ``python -m benchmarks P1 P3`` a few rows, ``--ours``
only our side; ``--again 2`` repeats a visit that other processes of the machine disturbed. A visit
is one contestant's turn at some rows. Linux only: it reads ``/proc``.

    rows/            what is measured: one function a row, written once for every contestant
    contestants.py   the contestants: entangle, the peers, and references such as one plain process
    warm.py          contestants with warm workers;  distant.py, those in other places
    work.py          the functions that are the tasks; decorated.py: as an entangle user writes them
    row.py           the terms: Row, Line, and how one round is timed
    arena.py         the fresh process in which one contestant runs some rows
    contest.py       both orders: ours first and then the peers, then the peers first
    watch.py         observes a process tree: its memory, and how many of its processes could run
    results.py       medians, targets, ``results.json``
    report.py        the tables on the terminal, for page and README;  picture.py, the chart
    web_app.py       a program of its own: a web app whose workers are killed

To add a benchmark, write a function with ``@row(...)`` in a file of ``rows/``: it takes a
contestant and the rounds to run, and yields what each round measured. A new peer is a subclass of
``Contestant`` with four short methods.
"""
