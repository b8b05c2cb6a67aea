"""`mirror`: an object with the public members of another, some of them replaced."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["mirror", "overlay", "public_members"]


def public_members(target: object) -> Iterator[tuple[str, object]]:
    """Yield the names of an object's public members, with what its class has for them."""
    for name in dir(target):
        if not name.startswith("_"):
            yield name, inspect.getattr_static(target, name)


def mirror(target: object, prefix: str, members: Mapping[str, object]) -> Any:
    """Return an object with the public members of another.

    So it has the abilities of the other: `isinstance` with a protocol looks for members, not for `__getattr__`.

    Args:
        target: The other object.
        prefix: How the name of the new object's class begins.
        members: Members that replace those of the other, or are added to them.
    """
    found = dict(members)
    properties: dict[str, object] = {}
    for name, member in public_members(target):
        if name in found:
            continue
        if inspect.isroutine(member):
            found[name] = getattr(target, name)
        else:
            properties[name] = _forwarded(target, name)
    mirrored = type(f"{prefix}{type(target).__name__}", (), properties)()
    vars(mirrored).update(found)
    return mirrored


def _forwarded(target: object, name: str) -> property:
    return property(lambda _: getattr(target, name))


def overlay(target: object, members: object) -> dict[str, object]:
    """Return the public members of an object that another has, too, by name."""
    names = set(dir(target))
    return {name: getattr(members, name) for name, _ in public_members(members) if name in names}
