"""Backends: in each module a `TaskStore` and the `TaskMessageQueue` of the same backend."""
