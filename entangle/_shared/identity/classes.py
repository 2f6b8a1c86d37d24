"""What counts of a class: what its author wrote, without what Python and decorators derive."""

from __future__ import annotations

import enum
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any

#: Attributes of a class that do not say what it does, or differ from process to process.
_ABOUT = frozenset(
    (
        *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "_abc_impl"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__abstractmethods__", "__parameters__"),
        *("__orig_bases__", "__subclasshook__", "__slotnames__", "__non_callable_proto_members__", "__protocol_attrs__"),
        *("__signature__", "__dataclass_fields__", "__dataclass_params__"),
    )
)
_OF_ENUM = frozenset(
    (
        *("_member_names_", "_member_map_", "_value2member_map_", "_hashable_values_", "_unhashable_values_"),
        *("_unhashable_values_map_", "_sort_order_"),
    )
)
#: What counts of a field of a dataclass.
_OF_FIELD = ("default", "default_factory", "init", "repr", "hash", "compare", "kw_only", "metadata")


def counted(kind: type, attributes: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """What counts of a class, by names: its attributes (`attributes`) and what stands for some."""
    skipped = _ABOUT
    found = dict(attributes)
    if isinstance(kind, enum.EnumMeta):
        members: dict[str, Any] = dict(kind.__members__)
        skipped |= _OF_ENUM | members.keys()
        yield "the members", [(name, member.value) for name, member in members.items()]
    fields = found.get("__dataclass_fields__")
    if isinstance(fields, dict):
        yield "the fields", [(name, _field(field)) for name, field in fields.items()]
        yield "the dataclass", repr(found.get("__dataclass_params__"))
    if annotated := annotations_of(kind):  # whoever asks for fields reads them
        yield "the annotations", [(name, annotation_text(value)) for name, value in annotated.items()]
    for name, value in attributes:
        if name in skipped or name.startswith("__pydantic_"):
            continue
        if isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            continue
        if fields is not None and _is_generated(value):
            continue
        yield name, value


def _field(field: Any) -> tuple[Any, ...]:
    return (*(getattr(field, name, None) for name in _OF_FIELD), str(field._field_type))


def _is_generated(value: Any) -> bool:
    """Whether a method was made by `dataclasses` of the fields and what was asked for."""
    written = getattr(value, "__wrapped__", value)  # `__repr__` has a wrapper
    return isinstance(written, types.FunctionType) and getattr(written.__code__, "co_qualname", "").startswith("__create_fn__.")


def annotations_of(of: Any) -> dict[str, Any]:
    """The annotations of a class or a function."""
    try:
        return dict(inspect.get_annotations(of))
    except Exception:  # a name that is not defined (yet)
        return {}


def annotation_text(value: Any) -> str:
    """What an annotation says, as it would be written."""
    return value if isinstance(value, str) else value.__qualname__ if isinstance(value, type) else repr(value)
