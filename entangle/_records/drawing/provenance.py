"""The provenance of a run as PROV-JSON (https://www.w3.org/submissions/prov-json/).

A node is an activity, a value an entity, a version of a task a plan, the user an agent. Where
several nodes made equal values, each has an entity of its own: equal values may have different
histories.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from entangle._records.rows import RunGraph, Value

NAMESPACE = "urn:entangle:"


def to_prov(run: RunGraph) -> str:
    """The document."""
    name = f"run:{run.id}"
    activities: dict[str, Any] = {
        name: {
            "prov:label": run.name,
            "prov:type": _qualified("entangle:Run"),
            **_span(run.started_ns, run.ended_ns),
            "entangle:state": run.state,
            **({"entangle:error": str(run.error)} if run.error else {}),
            "entangle:host": run.host,
            "entangle:python": run.python,
            "entangle:version": run.entangle,
            **({"entangle:commit": run.git.commit} if run.git and run.git.commit else {}),
            **({"entangle:dirty": run.git.dirty} if run.git and run.git.dirty is not None else {}),
            **({"entangle:retired": [f"pid {one.pid}: {one.reason}" for one in run.retirements]} if run.retirements else {}),
            **{f"entangle:tag-{_name(key)}": value for key, value in run.tags.items()},
        }
    }
    user = f"user:{_name(run.user or 'unknown')}"
    agents = {user: {"prov:type": _qualified("prov:Person"), "prov:label": run.user}}
    entities: dict[str, Any] = {}
    generated, used, associated, informed = dict[str, Any](), dict[str, Any](), dict[str, Any](), dict[str, Any]()
    plans: dict[int, str] = {}
    for task in run.tasks:
        plans[id(task)] = plan = f"task:{task.version}"
        entities[plan] = {
            "prov:type": _qualified("prov:Plan"),
            "prov:label": task.name,
            "entangle:module": task.module,
            "entangle:sha256": task.version,
            **({"entangle:source": task.source} if task.source else {}),
        }
    associated["_:a"] = {"prov:activity": name, "prov:agent": user}
    for node in run.nodes:
        activity = f"call:{run.id}-{node.number}"
        activities[activity] = {
            "prov:label": node.name,
            "prov:type": _qualified("entangle:Call"),
            **_span(node.started_ns, node.ended_ns),
            "entangle:state": node.state,
            **({"entangle:error": str(node.error)} if node.error else {}),
            **({"entangle:cause": f"call:{run.id}-{node.cause}"} if node.cause is not None else {}),
            **({"entangle:pid": node.pid} if node.pid is not None else {}),
            **({"entangle:cpu": node.cpu} if node.cpu is not None else {}),
            **({"prov:location": node.place} if node.place else {}),
            **({"entangle:ticket": node.ticket} if node.ticket else {}),
        }
        associated[f"_:a{node.number}"] = {"prov:activity": activity, "prov:agent": user, "prov:plan": plans[id(node.task)]}
        informed[f"_:p{node.number}"] = {"prov:informed": activity, "prov:informant": name}
        if node.state == "done":
            entity = f"value:{run.id}-{node.number}"
            entities[entity] = _value(node.value)
            generated[f"_:g{node.number}"] = {"prov:entity": entity, "prov:activity": activity, **_at(node.ended_ns)}
        for position, taken in enumerate(run.inputs_of(node.number)):
            if taken.source is not None:
                entity = f"value:{run.id}-{taken.source}"
                if run.nodes[taken.source].state != "done":
                    continue
            else:
                entity = f"value:{run.id}-{node.number}-{position}"
                entities[entity] = _value(taken.value)
            used[f"_:u{node.number}-{position}"] = {
                "prov:activity": activity,
                "prov:entity": entity,
                "prov:role": taken.argument,
                **_at(node.started_ns),
            }
    prefixes = {"entangle": NAMESPACE, **{name: f"{NAMESPACE}{name}:" for name in ("run", "call", "task", "value", "user")}}
    document = {
        "prefix": prefixes,
        "entity": entities,
        "activity": activities,
        "agent": agents,
        "wasGeneratedBy": generated,
        "used": used,
        "wasAssociatedWith": associated,
        "wasInformedBy": informed,
    }
    return json.dumps({key: part for key, part in document.items() if part}, indent=1)


def _qualified(name: str) -> dict[str, str]:
    return {"$": name, "type": "prov:QUALIFIED_NAME"}


def _name(text: str) -> str:
    """Text that may stand in a qualified name."""
    return "".join(char if char.isalnum() and char.isascii() else "-" for char in text) or "-"


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc).isoformat(timespec="microseconds")


def _span(began: int | None, ended: int | None) -> dict[str, str]:
    return {
        **({"prov:startTime": _time(began)} if began is not None else {}),
        **({"prov:endTime": _time(ended)} if ended is not None else {}),
    }


def _at(when: int | None) -> dict[str, str]:
    return {"prov:time": _time(when)} if when is not None else {}


def _value(value: Value | None) -> dict[str, Any]:
    if value is None:
        return {"prov:type": _qualified("entangle:Value")}
    return {
        "prov:type": _qualified("entangle:Value"),
        "prov:label": value.text,
        "entangle:type": value.type,
        **({"entangle:size": value.size} if value.size is not None else {}),
        **({"entangle:sha256": value.hash} if value.hash else {}),
    }
