"""Files for type checkers: `make lint` runs mypy and pyright over them, and so does
`test_typing.py`.

A line that must be refused carries an ignore with its reason; when it is no longer refused, the
checker says so."""
