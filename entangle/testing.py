"""What tests of code that extends entangle need; `docs/testing.md` has what tests of tasks need."""

from __future__ import annotations

from entangle._testing.service_checks import check_service, checks

__all__ = ["check_service", "checks"]
