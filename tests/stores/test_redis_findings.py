"""What `doctor` says of a Redis server, by its `INFO`."""

from __future__ import annotations

import pytest

pytest.importorskip("coredis", reason="coredis is not installed")

from mcp_task_runtime.stores.redis._statistics import findings

HEALTHY = {
    "redis_version": "7.2.4",
    "role": "master",
    "maxmemory": "0",
    "maxmemory_policy": "noeviction",
    "evicted_keys": "0",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
}


@pytest.mark.parametrize(
    ("changed", "subject", "level", "says"),
    [
        ({}, "server", "ok", "Redis 7.2.4"),
        ({}, "eviction", "ok", "evicts nothing"),
        ({}, "persistence", "ok", "append-only"),
        ({"role": "slave"}, "server", "error", "replica"),
        ({"maxmemory_policy": "allkeys-lru"}, "eviction", "ok", "evicts nothing"),  # without a limit it never has to
        ({"maxmemory": "1000000"}, "eviction", "ok", "evicts nothing"),
        (
            {"maxmemory": "1000000", "maxmemory_policy": "allkeys-lru", "evicted_keys": "7"},
            "eviction",
            "warning",
            "has evicted 7 keys: set maxmemory-policy to noeviction instead of allkeys-lru",
        ),
        ({"aof_enabled": "0"}, "persistence", "warning", "set appendonly to yes"),
        ({"aof_last_write_status": "err"}, "persistence", "error", "disk full"),
    ],
)
def test_each_setting_that_endangers_tasks_is_found(
    changed: dict[str, str], subject: str, level: str, says: str
) -> None:
    info = "# Server\r\n" + "".join(f"{name}:{value}\r\n" for name, value in {**HEALTHY, **changed}.items())
    (found,) = [finding for finding in findings(info.encode()) if finding.subject == subject]
    assert found.level == level
    assert says in found.text


def test_nonsense_is_survived() -> None:
    assert {finding.subject for finding in findings(b"\xff\xfe:\r\n::\r\n")} == {"server", "eviction", "persistence"}
