"""`StepResult`: the JSON form of what a step returns, and the way back.

The type is the function's return annotation, or `returns=`; pydantic writes and restores it: models, dataclasses,
`datetime`, `list[Model]`. A result of a subclass comes back as the annotated class. Without a type, or with `Any`, a
result must be equal to what JSON restores: dicts with text keys, lists, text, numbers, booleans, `None`.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError

from mcp_task_runtime.core.functions import code_of
from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.errors import StepChangedError, StepResultError

__all__ = ["MAX_RESULT_BYTES", "StepResult"]

MAX_RESULT_BYTES: Final = 4 * 1024 * 1024
"""Bytes that the JSON form of one result may take."""

_ADVICE = "annotate the function's return type with one that pydantic restores, or give it as returns="


class StepResult:
    """How one step's result becomes JSON text and comes back."""

    def __init__(self, step: str, function: Callable[..., Any], returns: Any = None) -> None:
        """Find the type of the result.

        Args:
            step: Name of the step, for errors.
            function: What the step runs.
            returns: The type; that of the function's return annotation when `None`.

        Raises:
            StepResultError: The annotation cannot be resolved, or pydantic cannot restore the type.
        """
        self._step = step
        kind = _annotation(step, function) if returns is None else returns
        self._adapter: TypeAdapter[Any] | None = None
        if kind not in (None, Any, object):
            try:
                self._adapter = _adapter(kind)
            except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError) as error:
                raise StepResultError(step, f"its type {kind!r} has no JSON form; {_ADVICE}") from error

    def dump(self, value: object) -> str:
        """Return the JSON text of a result, having checked that `load` can restore it.

        Raises:
            StepResultError: It has none, it is too large, or JSON does not give the same value back.
        """
        try:
            text = dump_json(value) if self._adapter is None else self._dump_typed(value)
            restored = self._restore(text)
        except Exception as error:  # also what a serializer of a model raises
            raise StepResultError(self._step, f"its result has no JSON form; {_ADVICE}") from error
        if self._adapter is None and restored != value:
            raise StepResultError(self._step, f"JSON does not give its result back as it was; {_ADVICE}")
        if len(text.encode()) > MAX_RESULT_BYTES:
            raise StepResultError(self._step, f"its result takes more than {MAX_RESULT_BYTES} bytes")
        return text

    def load(self, text: str) -> Any:
        """Return a result from its JSON text.

        Raises:
            StepChangedError: The type of the result is another one than when it was recorded.
        """
        try:
            return self._restore(text)
        except ValidationError as error:
            raise StepChangedError(self._step, "its result is of another type") from error

    def _dump_typed(self, value: object) -> str:
        assert self._adapter is not None
        text = self._adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error").decode()
        load_json(text)
        return text

    def _restore(self, text: str) -> Any:
        return load_json(text) if self._adapter is None else self._adapter.validate_json(text)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(kind)
    except TypeError:  # no hash
        return TypeAdapter(kind)


@functools.lru_cache(maxsize=256)
def _cached_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _annotation(step: str, function: Callable[..., Any]) -> Any:
    code = code_of(function)
    try:
        hint = get_type_hints(inspect.unwrap(code), include_extras=True).get("return", Any)
    except NameError as error:
        raise StepResultError(step, f"its return annotation cannot be resolved ({error}); give returns=") from error
    except TypeError:  # nothing with annotations, as many functions written in C
        return Any
    if get_origin(hint) in (collections.abc.Awaitable, collections.abc.Coroutine):
        hint = get_args(hint)[-1]
    return hint
