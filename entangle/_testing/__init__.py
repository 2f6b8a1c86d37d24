"""Tools for tests of users, independent of any test runner."""
