"""What tests of users need, apart from any test runner."""
