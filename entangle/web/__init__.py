"""The page of `entangle ui`: shows what runs and what ran, in a browser on this machine. Needs the
extra `web`.

::

    server.py     uvicorn on loopback; the addresses to open
    guard.py      which requests are answered, and what a browser may do with the answers
    pages.py      paths and answers
    live.py       live runs, read from their tables
    recorded.py   runs that are remembered, read from the file of records
    page_graph.py a graph for the page: in a large run, the nodes of a task are drawn as one
    lanes.py      a timeline for the page: what is narrower than a pixel is joined
    static/       the page itself; vendor/ has Cytoscape.js and its licence

It is read-only: no request changes anything.
"""
