"""`python -m entangle`: the command line."""

from entangle.cli import main

raise SystemExit(main())
