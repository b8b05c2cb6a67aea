"""The laws in words, and the names that authors of stores need."""

from __future__ import annotations

import importlib
import re

from mcp_task_runtime import core
from mcp_task_runtime.core.laws import LAWS

STORE_MODULES = ("clock", "message_queue", "store", "transitions", "types", "views")


def test_the_docstring_of_core_states_each_law_in_the_words_of_the_mapping() -> None:
    assert core.__doc__ is not None
    stated = re.findall(r"^- \*\*(L\d+)\*\* (.*(?:\n  .*)*)", core.__doc__, re.MULTILINE)
    assert {law: " ".join(sentence.split()) for law, sentence in stated} == dict(LAWS)
    assert list(LAWS) == [f"L{number}" for number in range(1, 19)]


def test_core_exports_every_name_that_a_store_author_needs() -> None:
    for module in STORE_MODULES:
        names = set(importlib.import_module(f"mcp_task_runtime.core.{module}").__all__)
        ours = {"TERMINAL_STATUSES", "TRANSITIONS", "as_client_sees", "sleep_by"}
        assert names - set(core.__all__) <= ours
