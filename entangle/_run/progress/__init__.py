"""How far runs are, for people: on a terminal, in a log, in a notebook.

::

    following     which runs are shown, and when to look
      │ tally     what a run has done, by task name, and how long the rest may take: from its table
      ▼
    wording       a line about a run, and the last line
      ▼
    showing       which of the three it is: terminal, log, notebook
"""
