"""Real services for the tests: hosts with an ssh server, a docker daemon with an image. They run
for one test session.

The programs are installed by `make services`. In continuous integration one that is missing fails
the tests that need it."""
