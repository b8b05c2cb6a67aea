from __future__ import annotations

import gc
import sys

import httpx
import pytest

from mcp_task_runtime.testing.concurrency.cost import measured_memory
from tests.support.patience import IS_LONG


def test_a_report_with_any_text_can_be_sent_to_the_process_that_prints_it(request: pytest.FixtureRequest) -> None:
    report = pytest.TestReport(
        "id", ("file", 1, "name"), {}, "passed", None, "call", sections=[("Captured log call", "a \ud800 é")]
    )
    sent = request.config.hook.pytest_report_to_serializable(config=request.config, report=report)
    assert sent["sections"] == [("Captured log call", "a \\ud800 é")]
    assert str(sent).encode()


@pytest.mark.skipif(IS_LONG, reason="what installs packages reads them")
def test_a_client_reads_no_certificates() -> None:
    assert httpx.create_ssl_context().cert_store_stats()["x509"] == 0


def test_modules_and_collected_tests_are_kept_out_of_garbage_collection() -> None:
    assert gc.get_freeze_count() > 10_000


@pytest.mark.parametrize("is_frozen", [True, False])
def test_the_kit_measures_memory_and_thaws_only_what_it_has_frozen(is_frozen: bool) -> None:
    if not is_frozen:
        gc.unfreeze()
    try:
        with measured_memory() as memory:
            assert gc.get_freeze_count()
            before = memory()
            kept = [[number] for number in range(1_000)]
            assert memory() - before > 1_000 * sys.getsizeof([0])
            kept.clear()
        assert bool(gc.get_freeze_count()) == is_frozen
    finally:
        gc.freeze()
