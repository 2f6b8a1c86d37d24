"""The options that @process and @thread share, checked when the function is decorated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from entangle._shared.summaries import value_in_short
from entangle._tasks.layer import Layer
from entangle._tasks.option_values import check_seconds, check_whether, is_number
from entangle.errors import OptionError

if TYPE_CHECKING:
    from entangle._tasks.cache_layer import Remembering
    from entangle._tasks.cache_options import Cache

On = type[BaseException] | tuple[type[BaseException], ...] | None


class Terms(Layer):
    """How a body runs: its carrier, deadlines, attempts, and whether its value is kept."""

    remembering: Remembering | None = None

    def __init__(
        self,
        decorator: str,
        *,
        timeout: float | None,
        wait: float | None,
        retry: int,
        sleep: float,
        backoff: float,
        jitter: float,
        on: On,
        cache: bool | Cache,
        idempotent: bool,
        shared_memory: bool,
    ) -> None:
        check_seconds(f"@{decorator}", timeout=timeout, wait=wait)
        for name, value in (("sleep", sleep), ("backoff", backoff), ("jitter", jitter)):
            if not is_number(value) or value < 0:
                raise OptionError(f"@{decorator}: {name}={value_in_short(value)}; it must be a number, 0 or above")
        if isinstance(retry, bool) or not isinstance(retry, int) or not 0 <= retry <= 250:
            raise OptionError(f"@{decorator}: retry={value_in_short(retry)}; it must be a whole number of further attempts, 0 to 250")
        types = (Exception,) if on is None else on if isinstance(on, tuple) else (on,)
        for kind in types:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise OptionError(f"@{decorator}: on={value_in_short(on)}; it must be an exception type, or a tuple of them")
        check_whether(f"@{decorator}", idempotent=idempotent, shared_memory=shared_memory)
        self._decorator = decorator
        self._terms: dict[str, Any] = {
            "timeout": timeout,
            "wait": wait,
            "retry": retry,
            "sleep": float(sleep),
            "backoff": float(backoff),
            "jitter": float(jitter),
            "on": types,
            "shared_memory": bool(shared_memory),
            "idempotent": bool(idempotent),
        }
        defaults = {"timeout": None, "wait": None, "retry": 0, "shared_memory": False}
        self.stated = tuple(f"{name}={self._terms[name]}" for name, default in defaults.items() if self._terms[name] != default)
        if shared_memory:
            self.injected = ("smm", "sm")
        if cache is not False and cache is not None:
            from entangle._tasks.cache_layer import Remembering
            from entangle._tasks.cache_options import options_of

            options = options_of(decorator, cache)
            self.remembering = Remembering(options, self.injected) if options is not None else None

    def terms(self) -> dict[str, Any]:
        """What the engine enforces."""
        return self._terms

    def accept(self, function: Callable[..., Any]) -> None:
        """With `shared_memory`, refuse a function that does not take `smm` and `sm`; with `cache`,
        one without the parameters that are to be ignored."""
        if self.remembering is not None:
            self.remembering.options.accept(function)
        if not self._terms["shared_memory"]:
            return
        import inspect

        parameters = inspect.signature(function).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        missing = [name for name in self.injected if name not in parameters and not takes_any]
        if missing:
            name = getattr(function, "__name__", repr(function))
            raise OptionError(
                f"@{self._decorator}(shared_memory=True): {name} must take the keyword arguments smm and sm; "
                f"it lacks {' and '.join(missing)}. Write `def {name}(..., smm=None, sm=None)`"
            )

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """With `cache`, the memory around the function."""
        return self.remembering.around(inner) if self.remembering is not None else inner
