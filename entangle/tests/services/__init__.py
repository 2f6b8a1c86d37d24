"""Real services for the tests: hosts with an ssh server, a docker daemon with an image. They run
for one test session.

`make services` installs the programs. In CI, the tests that need a missing program fail.
"""
