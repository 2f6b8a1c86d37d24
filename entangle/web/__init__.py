"""The page: `entangle ui`. What runs and what ran, in a browser on this machine. Needs the extra `web`.

::

    server.py     uvicorn on loopback, the address with its token
    guard.py      who may ask, and what a browser may do with the answers
    pages.py      paths and answers
    live.py       runs that last, from their tables
    memory.py     runs that are remembered, from the file of records
    graphs.py     a graph as the page draws it: many nodes of a task as one
    lanes.py      a timeline as the page draws it: what is narrower than a pixel joined
    static/       the page itself; vendor/ holds Cytoscape.js and its dagre layout, with their licences

It only looks: nothing that the page asks for changes anything.
"""
