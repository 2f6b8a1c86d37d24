# Written by docs/task_arguments.py: change it there.
"""What type checkers know of the arguments of a task. There is no such module when programs run.

`docs/architecture/typing.md` says how these overloads work, and what they cannot say.
"""

from collections.abc import AsyncIterable, Coroutine, Iterable, Iterator
from typing import Any, ClassVar, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from entangle._tasks import OnError, Values
from entangle._tasks.call import Call, Start

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
V = TypeVar("V")
W = TypeVar("W")
X = TypeVar("X")
Y = TypeVar("Y")
Z = TypeVar("Z")
X_co = TypeVar("X_co", covariant=True)
Y_co = TypeVar("Y_co", covariant=True)

A = TypeVar("A")
A_contra = TypeVar("A_contra", contravariant=True)
B = TypeVar("B")
B_contra = TypeVar("B_contra", contravariant=True)
C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)
D = TypeVar("D")
D_contra = TypeVar("D_contra", contravariant=True)
E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)
F = TypeVar("F")
F_contra = TypeVar("F_contra", contravariant=True)
G = TypeVar("G")
G_contra = TypeVar("G_contra", contravariant=True)

class NeverFits:
    """The bound of `ArgumentsDoNotFit`: no argument is one."""

ArgumentsDoNotFit = TypeVar("ArgumentsDoNotFit", bound=NeverFits)
Fit_co = TypeVar("Fit_co", covariant=True)

class ArgumentsAreMissing:
    """What a call without arguments gives where the task must have some."""

#: A call that gives the value in the end, and a value or such a call.
CallOf: TypeAlias = Call[X | Call[X] | Coroutine[Any, Any, X]]
Given: TypeAlias = X | CallOf[X]

# Containers as a reader sees them: a list of calls is one of "calls or values".

class ListOf(Protocol[X_co]):
    """A list."""

    def __iter__(self) -> Iterator[X_co]: ...
    def reverse(self) -> None: ...

class SetOf(Protocol[X_co]):
    """A set."""

    def __iter__(self) -> Iterator[X_co]: ...
    def issubset(self, other: Iterable[Any], /) -> bool: ...

class DictOf(Protocol[X_co, Y_co]):
    """A dict."""

    def keys(self) -> Iterable[X_co]: ...
    def values(self) -> Iterable[Y_co]: ...
    def popitem(self) -> tuple[X_co, Y_co]: ...

# Every object is one of these, by a method that all have. The type of that method's value tells
# what counts as a call: Any. `Call` alone says Any of its hash. What cannot be hashed counts, too,
# for it may hold calls.

class Hashable(Protocol[Fit_co]):
    """A value that can be hashed, which does not count, or a call, which counts."""

    def __hash__(self) -> Fit_co: ...  # type: ignore[override]
    def __sizeof__(self) -> int: ...

class HashableInPlace(Protocol[Fit_co]):
    """A value that can be hashed, or a call; neither counts."""

    def __hash__(self) -> int: ...
    @property  # type: ignore[misc]
    def __class__(self) -> Fit_co: ...  # type: ignore[override]

class InPlace(Protocol[Fit_co]):
    """Any value; it does not count."""

    @property  # type: ignore[misc]
    def __class__(self) -> Fit_co: ...  # type: ignore[override]

class Unhashable(Protocol[Fit_co]):
    """A list, a dict, a set, an array: it counts, for it may hold calls."""

    __hash__: ClassVar[None]  # type: ignore[assignment]
    def __getattribute__(self, name: str, /) -> Fit_co: ...

class UnhashableToo(Protocol[Fit_co]):
    """As Unhashable, of classes that do not say ClassVar."""

    @property
    def __hash__(self) -> None: ...  # type: ignore[override]
    def __getattribute__(self, name: str, /) -> Fit_co: ...

# Tasks by what they take: so many positional arguments, and others.

class Takes1(Protocol[A_contra, Q, R_co]):
    def _takes(self, a: A_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...

class TakesOnly1(Protocol[A_contra, R_co]):
    def _takes(self, a: A_contra, /) -> R_co: ...

class Takes2(Protocol[A_contra, B_contra, Q, R_co]):
    def _takes(self, a: A_contra, b: B_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...

class TakesOnly2(Protocol[A_contra, B_contra, R_co]):
    def _takes(self, a: A_contra, b: B_contra, /) -> R_co: ...

class Takes3(Protocol[A_contra, B_contra, C_contra, Q, R_co]):
    def _takes(self, a: A_contra, b: B_contra, c: C_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...

class TakesOnly3(Protocol[A_contra, B_contra, C_contra, R_co]):
    def _takes(self, a: A_contra, b: B_contra, c: C_contra, /) -> R_co: ...

class Takes4(Protocol[A_contra, B_contra, C_contra, D_contra, Q, R_co]):
    def _takes(self, a: A_contra, b: B_contra, c: C_contra, d: D_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...

class TakesOnly4(Protocol[A_contra, B_contra, C_contra, D_contra, R_co]):
    def _takes(self, a: A_contra, b: B_contra, c: C_contra, d: D_contra, /) -> R_co: ...

class Takes5(Protocol[A_contra, B_contra, C_contra, D_contra, E_contra, Q, R_co]):
    def _takes(self, a: A_contra, b: B_contra, c: C_contra, d: D_contra, e: E_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...

class TakesOnly5(Protocol[A_contra, B_contra, C_contra, D_contra, E_contra, R_co]):
    def _takes(self, a: A_contra, b: B_contra, c: C_contra, d: D_contra, e: E_contra, /) -> R_co: ...

class Takes6(Protocol[A_contra, B_contra, C_contra, D_contra, E_contra, F_contra, Q, R_co]):
    def _takes(
        self, a: A_contra, b: B_contra, c: C_contra, d: D_contra, e: E_contra, f: F_contra, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> R_co: ...

class TakesOnly6(Protocol[A_contra, B_contra, C_contra, D_contra, E_contra, F_contra, R_co]):
    def _takes(self, a: A_contra, b: B_contra, c: C_contra, d: D_contra, e: E_contra, f: F_contra, /) -> R_co: ...

class TakesMany(Protocol[A_contra, R_co]):
    def _takes(self, a: A_contra, b: A_contra, c: A_contra, d: A_contra, e: A_contra, f: A_contra, g: A_contra, /) -> R_co: ...

class TaskArguments(Generic[P, R]):
    """What can be called with arguments, each a value or a call: a task, or one of an instance."""

    def _takes(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """A call of this task with these arguments, each a value or a call.

        Raises ArgumentError if they do not fit the function.
        """
    @overload
    def __call__(self: Takes1[A, Q, V], a: Given[A], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(self: Takes2[A, B, Q, V], a: Given[A], b: Given[B], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(self: Takes3[A, B, C, Q, V], a: Given[A], b: Given[B], c: Given[C], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes4[A, B, C, D, Q, V], a: Given[A], b: Given[B], c: Given[C], d: Given[D], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes5[A, B, C, D, E, Q, V],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes6[A, B, C, D, E, F, Q, V],
        a: Given[A],
        b: Given[B],
        c: Given[C],
        d: Given[D],
        e: Given[E],
        f: Given[F],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(self: TakesMany[A, V], /, *args: Given[A]) -> Call[V]: ...
    @overload
    def __call__(self: Takes1[list[X], Q, V], a: ListOf[Given[X]], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(self: Takes1[dict[X, Y], Q, V], a: DictOf[X, Given[Y]], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(self: Takes1[tuple[X, ...], Q, V], a: tuple[Given[X], ...], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(self: Takes1[tuple[X, Y], Q, V], a: tuple[Given[X], Given[Y]], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes1[tuple[X, Y, Z], Q, V], a: tuple[Given[X], Given[Y], Given[Z]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(self: Takes1[set[X], Q, V], a: SetOf[Given[X]], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(self: Takes2[list[X], B, Q, V], a: ListOf[Given[X]], b: Given[B], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[dict[X, Y], B, Q, V], a: DictOf[X, Given[Y]], b: Given[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[tuple[X, ...], B, Q, V], a: tuple[Given[X], ...], b: Given[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[tuple[X, Y], B, Q, V], a: tuple[Given[X], Given[Y]], b: Given[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[tuple[X, Y, Z], B, Q, V], a: tuple[Given[X], Given[Y], Given[Z]], b: Given[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(self: Takes2[set[X], B, Q, V], a: SetOf[Given[X]], b: Given[B], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(self: Takes2[A, list[X], Q, V], a: Given[A], b: ListOf[Given[X]], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[A, dict[X, Y], Q, V], a: Given[A], b: DictOf[X, Given[Y]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[A, tuple[X, ...], Q, V], a: Given[A], b: tuple[Given[X], ...], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[A, tuple[X, Y], Q, V], a: Given[A], b: tuple[Given[X], Given[Y]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[A, tuple[X, Y, Z], Q, V], a: Given[A], b: tuple[Given[X], Given[Y], Given[Z]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(self: Takes2[A, set[X], Q, V], a: Given[A], b: SetOf[Given[X]], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[list[X], B, C, Q, V], a: ListOf[Given[X]], b: Given[B], c: Given[C], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[dict[X, Y], B, C, Q, V], a: DictOf[X, Given[Y]], b: Given[B], c: Given[C], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[tuple[X, ...], B, C, Q, V], a: tuple[Given[X], ...], b: Given[B], c: Given[C], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[tuple[X, Y], B, C, Q, V], a: tuple[Given[X], Given[Y]], b: Given[B], c: Given[C], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[A, list[X], C, Q, V], a: Given[A], b: ListOf[Given[X]], c: Given[C], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[A, dict[X, Y], C, Q, V], a: Given[A], b: DictOf[X, Given[Y]], c: Given[C], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[A, tuple[X, ...], C, Q, V], a: Given[A], b: tuple[Given[X], ...], c: Given[C], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[A, tuple[X, Y], C, Q, V], a: Given[A], b: tuple[Given[X], Given[Y]], c: Given[C], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[A, B, list[X], Q, V], a: Given[A], b: Given[B], c: ListOf[Given[X]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[A, B, dict[X, Y], Q, V], a: Given[A], b: Given[B], c: DictOf[X, Given[Y]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[A, B, tuple[X, ...], Q, V], a: Given[A], b: Given[B], c: tuple[Given[X], ...], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes3[A, B, tuple[X, Y], Q, V], a: Given[A], b: Given[B], c: tuple[Given[X], Given[Y]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes1[list[list[X]], Q, V], a: ListOf[ListOf[Given[X]] | CallOf[list[X]]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes1[list[tuple[X, Y]], Q, V],
        a: ListOf[tuple[Given[X], Given[Y]] | CallOf[tuple[X, Y]]],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes1[list[dict[X, Y]], Q, V], a: ListOf[DictOf[X, Given[Y]] | CallOf[dict[X, Y]]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes1[dict[X, list[Y]], Q, V], a: DictOf[X, ListOf[Given[Y]] | CallOf[list[Y]]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[list[list[X]], B, Q, V],
        a: ListOf[ListOf[Given[X]] | CallOf[list[X]]],
        b: Given[B],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[list[tuple[X, Y]], B, Q, V],
        a: ListOf[tuple[Given[X], Given[Y]] | CallOf[tuple[X, Y]]],
        b: Given[B],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[list[dict[X, Y]], B, Q, V],
        a: ListOf[DictOf[X, Given[Y]] | CallOf[dict[X, Y]]],
        b: Given[B],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[dict[X, list[Y]], B, Q, V],
        a: DictOf[X, ListOf[Given[Y]] | CallOf[list[Y]]],
        b: Given[B],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[A, list[list[X]], Q, V],
        a: Given[A],
        b: ListOf[ListOf[Given[X]] | CallOf[list[X]]],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[A, list[tuple[X, Y]], Q, V],
        a: Given[A],
        b: ListOf[tuple[Given[X], Given[Y]] | CallOf[tuple[X, Y]]],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[A, list[dict[X, Y]], Q, V],
        a: Given[A],
        b: ListOf[DictOf[X, Given[Y]] | CallOf[dict[X, Y]]],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[A, dict[X, list[Y]], Q, V],
        a: Given[A],
        b: DictOf[X, ListOf[Given[Y]] | CallOf[list[Y]]],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[list[X], list[Z], Q, V], a: ListOf[Given[X]], b: ListOf[Given[Z]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[list[X], dict[Z, W], Q, V], a: ListOf[Given[X]], b: DictOf[Z, Given[W]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[dict[X, Y], list[Z], Q, V], a: DictOf[X, Given[Y]], b: ListOf[Given[Z]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(
        self: Takes2[dict[X, Y], dict[Z, W], Q, V], a: DictOf[X, Given[Y]], b: DictOf[Z, Given[W]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[V]: ...
    @overload
    def __call__(self: TakesMany[list[X], V], /, *args: ListOf[Given[X]]) -> Call[V]: ...
    @overload
    def __call__(self: TakesMany[dict[X, Y], V], /, *args: DictOf[X, Given[Y]]) -> Call[V]: ...
    @overload
    def __call__(self: TakesMany[tuple[X, ...], V], /, *args: tuple[Given[X], ...]) -> Call[V]: ...
    @overload
    def __call__(self: TakesMany[tuple[X, Y], V], /, *args: tuple[Given[X], Given[Y]]) -> Call[V]: ...
    @overload
    def __call__(self, /) -> Coroutine[Any, Any, ArgumentsAreMissing]: ...  # type: ignore[overload-cannot-match]
    @overload
    def __call__(
        self,
        /,
        *args: InPlace[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        **kwargs: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
    ) -> Call[R]: ...
    @overload
    def __call__(self, /, **kwargs: Call[Any] | list[Any] | dict[Any, Any] | set[Any] | tuple[Any, ...]) -> Call[R]: ...
    @overload
    def __call__(
        self,
        a: list[Any] | dict[Any, Any] | set[Any] | tuple[Any, ...],
        b: list[Any] | dict[Any, Any] | set[Any] | tuple[Any, ...],
        c: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Call[R]: ...
    @overload
    def __call__(
        self,
        a: list[Any] | dict[Any, Any] | set[Any] | tuple[Any, ...],
        b: Any,
        c: list[Any] | dict[Any, Any] | set[Any] | tuple[Any, ...],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Call[R]: ...
    @overload
    def __call__(
        self,
        a: Any,
        b: list[Any] | dict[Any, Any] | set[Any] | tuple[Any, ...],
        c: list[Any] | dict[Any, Any] | set[Any] | tuple[Any, ...],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Call[R]: ...
    @overload
    def __call__(
        self,
        a: HashableInPlace[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        b: HashableInPlace[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        c: HashableInPlace[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        d: HashableInPlace[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        /,
        *args: HashableInPlace[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        **kwargs: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
    ) -> Call[R]: ...
    @overload
    def __call__(
        self,
        a: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        b: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        c: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        d: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        e: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        f: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        g: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        /,
        *args: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
        **kwargs: Hashable[ArgumentsDoNotFit] | Unhashable[ArgumentsDoNotFit] | UnhashableToo[ArgumentsDoNotFit] | ArgumentsDoNotFit,
    ) -> Call[R]: ...
    @overload
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...  # type: ignore[overload-cannot-match]
    @overload
    def map(
        self: TakesOnly1[A, Coroutine[Any, Any, V]], xs: Iterable[Given[A]] | Call[Iterable[A]], /, *, chunksize: int | None = None
    ) -> Call[list[V]]:
        """A call whose value is the list of the values for each item of `xs`.

        With several iterables, the task gets one item of each, until the shortest ends. Each item
        is a node of its own, with its own errors, name, retries and records. An item may be a call.
        `xs` may be a call, too, whose value is iterable: the items are then mapped when it is
        there. `chunksize` is how many items a worker takes at a time, by default as many as seem
        best.

        Raises ArgumentError if `xs` is no iterable, or the items do not fit the function.

            total(square.map(range(10_000)))()
        """
    @overload
    def map(self: TakesOnly1[A, V], xs: Iterable[Given[A]] | Call[Iterable[A]], /, *, chunksize: int | None = None) -> Call[list[V]]: ...
    @overload
    def map(
        self: TakesOnly2[A, B, Coroutine[Any, Any, V]],
        xs: Iterable[Given[A]] | Call[Iterable[A]],
        ys: Iterable[Given[B]] | Call[Iterable[B]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def map(
        self: TakesOnly2[A, B, V],
        xs: Iterable[Given[A]] | Call[Iterable[A]],
        ys: Iterable[Given[B]] | Call[Iterable[B]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def map(
        self: TakesOnly3[A, B, C, Coroutine[Any, Any, V]],
        xs: Iterable[Given[A]] | Call[Iterable[A]],
        ys: Iterable[Given[B]] | Call[Iterable[B]],
        zs: Iterable[Given[C]] | Call[Iterable[C]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def map(
        self: TakesOnly3[A, B, C, V],
        xs: Iterable[Given[A]] | Call[Iterable[A]],
        ys: Iterable[Given[B]] | Call[Iterable[B]],
        zs: Iterable[Given[C]] | Call[Iterable[C]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def map(
        self: TakesOnly4[A, B, C, D, Coroutine[Any, Any, V]],
        xs: Iterable[Given[A]] | Call[Iterable[A]],
        ys: Iterable[Given[B]] | Call[Iterable[B]],
        zs: Iterable[Given[C]] | Call[Iterable[C]],
        ws: Iterable[Given[D]] | Call[Iterable[D]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def map(
        self: TakesOnly4[A, B, C, D, V],
        xs: Iterable[Given[A]] | Call[Iterable[A]],
        ys: Iterable[Given[B]] | Call[Iterable[B]],
        zs: Iterable[Given[C]] | Call[Iterable[C]],
        ws: Iterable[Given[D]] | Call[Iterable[D]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def map(
        self,
        xs: Iterable[Any] | Call[Any],
        ys: Iterable[Any] | Call[Any],
        zs: Iterable[Any] | Call[Any],
        ws: Iterable[Any] | Call[Any],
        vs: Iterable[Any] | Call[Any],
        /,
        *more: Iterable[Any] | Call[Any],
        chunksize: int | None = None,
    ) -> Call[list[R]]: ...
    @overload
    def starmap(
        self: TakesOnly1[A, Coroutine[Any, Any, V]],
        pairs: Iterable[tuple[Given[A]]] | Call[Iterable[tuple[A]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]:
        """A call whose value is the list of the values for each tuple of arguments in `pairs`.

        As `map`, whose items are single arguments.

            power.starmap([(2, 3), (3, 2)])()
        """
    @overload
    def starmap(
        self: TakesOnly1[A, V], pairs: Iterable[tuple[Given[A]]] | Call[Iterable[tuple[A]]], /, *, chunksize: int | None = None
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly2[A, B, Coroutine[Any, Any, V]],
        pairs: Iterable[tuple[Given[A], Given[B]]] | Call[Iterable[tuple[A, B]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly2[A, B, V],
        pairs: Iterable[tuple[Given[A], Given[B]]] | Call[Iterable[tuple[A, B]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly3[A, B, C, Coroutine[Any, Any, V]],
        pairs: Iterable[tuple[Given[A], Given[B], Given[C]]] | Call[Iterable[tuple[A, B, C]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly3[A, B, C, V],
        pairs: Iterable[tuple[Given[A], Given[B], Given[C]]] | Call[Iterable[tuple[A, B, C]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly4[A, B, C, D, Coroutine[Any, Any, V]],
        pairs: Iterable[tuple[Given[A], Given[B], Given[C], Given[D]]] | Call[Iterable[tuple[A, B, C, D]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly4[A, B, C, D, V],
        pairs: Iterable[tuple[Given[A], Given[B], Given[C], Given[D]]] | Call[Iterable[tuple[A, B, C, D]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly2[A, A, Coroutine[Any, Any, V]],
        pairs: Iterable[tuple[Given[A], ...]] | Call[Iterable[tuple[A, ...]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly2[A, A, V], pairs: Iterable[tuple[Given[A], ...]] | Call[Iterable[tuple[A, ...]]], /, *, chunksize: int | None = None
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly3[A, A, A, Coroutine[Any, Any, V]],
        pairs: Iterable[tuple[Given[A], ...]] | Call[Iterable[tuple[A, ...]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self: TakesOnly3[A, A, A, V],
        pairs: Iterable[tuple[Given[A], ...]] | Call[Iterable[tuple[A, ...]]],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[V]]: ...
    @overload
    def starmap(
        self,
        pairs: Iterable[
            list[Any] | tuple[Any, Any, Any, Any, Any] | tuple[Any, Any, Any, Any, Any, Any] | tuple[Any, Any, Any, Any, Any, Any, Any]
        ]
        | Call[
            Iterable[
                list[Any] | tuple[Any, Any, Any, Any, Any] | tuple[Any, Any, Any, Any, Any, Any] | tuple[Any, Any, Any, Any, Any, Any, Any]
            ]
        ],
        /,
        *,
        chunksize: int | None = None,
    ) -> Call[list[R]]: ...
    @overload
    def stream(
        self: TakesOnly1[A, Coroutine[Any, Any, V]],
        xs: Iterable[Given[A]] | AsyncIterable[Given[A]],
        /,
        *,
        inflight: int | None = None,
        ordered: bool = True,
        on_error: OnError = "raise",
        start: Start | None = None,
    ) -> Values[V]:
        """The values for each item of `xs`, as they come, several items at a time.

        `xs` is any iterable; it may be endless, or asynchronous. Each item is one argument.
        `inflight` is the most items under way, from `xs` to the loop; None: as many as keep the
        workers busy. `xs` waits while there are so many. `ordered=False` gives values as they are
        done. `on_error` says what happens to an item with which the task fails: "raise" ends the
        stream with the error; "skip" leaves the item out and logs it; a function of (task, item,
        error) is called, and the item left out. The stream ends with `xs`, or when the loop is
        left.

        Raises ArgumentError where `xs` is no iterable or the task does not take one argument.

            for image in shrink.stream(paths): show(image)
        """
    @overload
    def stream(
        self: TakesOnly1[A, Call[V]],
        xs: Iterable[Given[A]] | AsyncIterable[Given[A]],
        /,
        *,
        inflight: int | None = None,
        ordered: bool = True,
        on_error: OnError = "raise",
        start: Start | None = None,
    ) -> Values[V]: ...
    @overload
    def stream(
        self: TakesOnly1[A, V],
        xs: Iterable[Given[A]] | AsyncIterable[Given[A]],
        /,
        *,
        inflight: int | None = None,
        ordered: bool = True,
        on_error: OnError = "raise",
        start: Start | None = None,
    ) -> Values[V]: ...
