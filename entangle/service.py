"""@service: the body runs as a job of a service that you describe yourself.

Derive the description from `Service`; docs/services.md says how.
"""

from __future__ import annotations

import os
from typing import Any

from entangle._services import OVER, PENDING, RUNNING, Limits, Service, State, Submission
from entangle._services.caller.at_service import AtService
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle.errors import OptionError
from entangle.task import Decorator, decorate, refuse_unknown

__all__ = ["OVER", "PENDING", "RUNNING", "Limits", "Service", "State", "Submission", "service"]


def service(through: Service, /, *, mailbox: str | os.PathLike[str] | None = None, **unknown: Any) -> Decorator:
    """Run the function as a job of this service, with the layers below; its value comes back.

    `mailbox` is a folder that both sides see, in which calls and their outcomes lie; by default
    ENTANGLE_MAILBOX, else `~/.local/state/entangle/mailbox`. Nothing of entangle needs to be
    installed there. A cold call takes as long as the service takes to start a Python, and about
    0.3 seconds; there are no warm ones. If the caller dies, what runs there ends within a minute,
    and a call that has not begun never does. The layers below run there as they are; `retry` holds
    for jobs that die as well.

    Raises OptionError here for bad options. Running a call raises UnreachableError and
    StoreFullError for the mailbox and for the service, UnfitPythonError for the Python there,
    ProcessTerminatedException with the platform's reason and the end of the log where a job dies,
    and what the function raises.

        @service(MyCluster(queue="short"), mailbox="/shared/me")
    """
    refuse_unknown("service", ("mailbox",), unknown)
    if not isinstance(through, Service):
        raise OptionError(
            f"@service: {value_in_short(through)} is no entangle.service.Service; give an instance of a class that derives from it"
        )
    if mailbox is not None and (not isinstance(mailbox, (str, os.PathLike)) or not os.fspath(mailbox)):
        raise OptionError(f"@service: mailbox={value_in_short(mailbox)}; it must be the path of a folder that both sides see")
    layer = AtService(through, os.fspath(mailbox) if mailbox is not None else None)

    @edge
    def wrap(inner: Any) -> Any:
        return decorate("service", inner, layer)

    return wrap


named_as_its_decorator(__name__)
