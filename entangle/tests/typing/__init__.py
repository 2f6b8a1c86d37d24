"""Files for type checkers, as users write them: `test_typing.py` gives them to mypy and pyright.

A line that ends in `# error` must be refused by both, and no other line by either."""
