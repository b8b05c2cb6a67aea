"""What runs inside Redis: each change of a task or a mailbox is one script, atomic and one round trip.

The scripts apply the rules of `core.transitions` where the data is. The status table itself is not
written down here a second time: `FOLLOWS` is made of it and goes to the scripts as an argument. Time is
the caller's clock's, always an argument (law L7).

Scripts about one task get its six keys (`_form`), on one server also that of the index of leases, and
the arguments now, operation and channel before their own. The operation names one call, so a call that is sent
again because its reply was lost is recognised and has its effect once. Nothing from a client is ever part of a
script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Final

from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, TRANSITIONS
from mcp_task_runtime.stores.redis._form import FIELDS, SCHEMA_VERSION

__all__ = ["FOLLOWS", "SCRIPTS", "UPDATES", "Script"]

FOLLOWS: Final[Mapping[str, bytes]] = {
    status: f" {' '.join(sorted(s for s, following in TRANSITIONS.items() if status in following))} ".encode()
    for status in TRANSITIONS
}
"""For each status those it may follow, in the form that the scripts look them up in."""

UPDATES: Final[Mapping[str | None, bytes]] = {
    None: f" {' '.join(sorted(s for s, following in TRANSITIONS.items() if s in following))} ".encode(),
    **{status: b" " if status in TERMINAL_STATUSES else follows for status, follows in FOLLOWS.items()},
}
"""The same for updates, which end no task; `None` is for an update that leaves the status as it is."""

_HEAD: Final = (
    *("v", "created_at", "ttl_ms", "status", "revision", "last_updated_at", "retention_ms"),
    *("op", "owner", "mark", "worker", "lease_expires_at", "attempt"),
)


@dataclass(frozen=True, slots=True)
class Script:
    """A script, and the name by which Redis knows it once it was loaded."""

    source: bytes
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", sha1(self.source, usedforsecurity=False).hexdigest().encode())


def _script(*parts: str) -> Script:
    """Return the script of these parts; `@name` in them is a field of the task as it was read."""
    source = "\n".join(parts).replace("$SCHEMA", str(SCHEMA_VERSION))
    for name, fields in (("$ALL", FIELDS), ("$HEAD", _HEAD)):
        source = source.replace(name, ", ".join(f"'{field}'" for field in fields))
    source = re.sub(r"@([a-z_]+)", lambda match: f"head[{_HEAD.index(match[1]) + 1}]", source)
    return Script(re.sub(r"^ +", "", source, flags=re.MULTILINE).strip().encode())


# An owner's index lives as long as the last of its tasks, and for ever as long as one of them does.
_INDEXES: Final = """
    local function fit_index(tasks, expiry, now, margin)
        if redis.call('ZCARD', tasks) > redis.call('ZCARD', expiry) then
            redis.call('PERSIST', tasks)
            redis.call('PERSIST', expiry)
            return
        end
        local last = redis.call('ZREVRANGE', expiry, 0, 0, 'WITHSCORES')
        if last[2] then
            local left = math.max((last[2] - now) / 1000 + margin, 1)
            left = string.format('%.0f', math.min(math.ceil(left), 1e14))
            redis.call('PEXPIRE', tasks, left)
            redis.call('PEXPIRE', expiry, left)
        end
    end
    local function index(tasks, expiry, now, margin, member, latest)
        if redis.call('ZSCORE', tasks, member) then return end
        local due = redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 8)
        if #due > 0 then -- some of what has expired makes room for what comes
            redis.call('ZREM', tasks, unpack(due))
            redis.call('ZREM', expiry, unpack(due))
        end
        local last = redis.call('ZREVRANGE', tasks, 0, 0, 'WITHSCORES')
        local place = now
        if last[2] and tonumber(last[2]) >= tonumber(now) then place = string.format('%.0f', last[2] + 1) end
        redis.call('ZADD', tasks, place, member)
        if latest ~= '' then redis.call('ZADD', expiry, latest, member) end
        fit_index(tasks, expiry, now, margin)
    end
    local function lease(leases, tag, lapses, keep)
        local left = redis.call('PTTL', leases)
        redis.call('ZADD', leases, 'LT', lapses, tag)
        if keep == '' then
            redis.call('PERSIST', leases)
        elseif left ~= -1 and tonumber(keep) > left then
            redis.call('PEXPIRE', leases, keep)
        end
    end
"""

_TASK: Final = """
    local now, op, channel = ARGV[1], ARGV[2], ARGV[3]
    local head = redis.call('HMGET', KEYS[1], $HEAD)
    if @v and tonumber(@v) > $SCHEMA then return {'schema', @v} end
    local function all() return redis.call('HMGET', KEYS[1], $ALL) end
    local function tell(what) redis.call('PUBLISH', channel, what) end
    local function later(a, b) if tonumber(a) > tonumber(b) then return a end return b end
    local function digits(number) return string.format('%.0f', number) end
    local function keep(ms)
        for number = 1, 6 do redis.call('PEXPIRE', KEYS[number], digits(math.min(tonumber(ms), 1e14))) end
    end
    local tag = string.match(channel, '{([^}]*)}$')
    local function unlease() if KEYS[7] then redis.call('ZREM', KEYS[7], tag) end end
    local function relapse(lapses) if KEYS[7] then redis.call('ZADD', KEYS[7], 'XX', lapses, tag) end end
    local function forget()
        redis.call('DEL', unpack(KEYS, 1, 6))
        unlease()
        tell('x')
    end
    local expired = @v and @ttl_ms and tonumber(now) >= tonumber(@created_at) + 1000 * tonumber(@ttl_ms)
    if expired then forget() end
"""

_EXISTING: Final = """
    if not @v then return {'absent'} end
    if expired then return {'expired', @owner, @mark} end
"""

# On one server the indexes are written in the same step. Arguments: milliseconds to keep the task, or nothing; those of
# `index`; those of `lease`, nothing for a task without one; fields and values.
_CREATE: Final = """
    if @v and not expired then
        if @op == op then return {'ok'} end
        return {'taken'}
    end
    redis.call('HSET', KEYS[1], unpack(ARGV, 10))
    if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0 then
        for number = 1, 6 do redis.call('PERSIST', KEYS[number]) end
        if ARGV[4] ~= '' then keep(ARGV[4]) end
    elseif ARGV[4] ~= '' then
        redis.call('PEXPIRE', KEYS[1], ARGV[4])
    end
    if KEYS[7] then
        index(KEYS[8], KEYS[9], now, ARGV[5], ARGV[6], ARGV[7])
        if ARGV[8] ~= '' then lease(KEYS[7], tag, ARGV[8], ARGV[9]) end
    end
    return {'ok', expired and @owner, expired and @mark}
"""

_UPDATE: Final = """
    if @op ~= op then
        if not string.find(ARGV[4], ' ' .. @status .. ' ', 1, true) then return {'refused', @status} end
        if ARGV[7] ~= '' and ARGV[7] ~= @revision then return {'conflict', @revision} end
        redis.call('HSET', KEYS[1], 'op', op, 'revision', digits(@revision + 1),
            'status', ARGV[5] ~= '' and ARGV[5] or @status, 'last_updated_at', later(now, @last_updated_at))
        if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'status_message', string.sub(ARGV[6], 2)) end
        tell('t')
    end
    return {'ok', all()}
"""

_FINISH: Final = """
    if @op ~= op then
        if not string.find(ARGV[4], ' ' .. @status .. ' ', 1, true) then return {'refused', @status} end
        local ended = later(now, @last_updated_at)
        redis.call('HSET', KEYS[1], 'op', op, 'revision', digits(@revision + 1),
            'status', ARGV[5], 'last_updated_at', ended)
        if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'outcome', string.sub(ARGV[6], 2)) end
        if ARGV[7] ~= '' then
            local message = string.sub(ARGV[7], 2)
            redis.call('HSET', KEYS[1], 'status_message', message, 'outcome_message', message)
        elseif ARGV[5] == 'completed' then
            redis.call('HDEL', KEYS[1], 'status_message')
        end
        if @worker then
            redis.call('HDEL', KEYS[1], 'worker', 'lease_expires_at', 'attempt')
            unlease()
        end
        if @ttl_ms then
            local ttl = math.ceil((ended - @created_at) / 1000) + @retention_ms
            if ttl > tonumber(@ttl_ms) then
                redis.call('HSET', KEYS[1], 'ttl_ms', digits(ttl))
                keep(math.ceil((@created_at - now) / 1000) + ttl + ARGV[8])
            end
        end
        tell('t')
    end
    return {'ok', all()}
"""

_DELETE: Final = """
    forget()
    return {'ok', @owner, @mark}
"""

_RENEW: Final = """
    if @worker ~= ARGV[4] then return {'no'} end
    redis.call('HSET', KEYS[1], 'lease_expires_at', ARGV[5])
    relapse(ARGV[5])
    return {'ok'}
"""

_DROP: Final = """
    if @worker ~= ARGV[4] then return {'no'} end
    if ARGV[5] == '1' then
        local lapses = math.min(tonumber(@lease_expires_at), tonumber(now))
        redis.call('HSET', KEYS[1], 'lease_expires_at', digits(lapses))
        relapse(digits(lapses))
    else
        redis.call('HDEL', KEYS[1], 'worker', 'lease_expires_at', 'attempt')
        unlease()
    end
    return {'ok'}
"""

_CLAIM: Final = """
    if @op ~= op then
        if not @worker or tonumber(@lease_expires_at) > tonumber(now) then return {'no'} end
        redis.call('HSET', KEYS[1], 'op', op, 'revision', digits(@revision + 1),
            'last_updated_at', later(now, @last_updated_at),
            'worker', ARGV[4], 'lease_expires_at', ARGV[5], 'attempt', digits(@attempt + 1))
        relapse(ARGV[5])
        tell('t')
    end
    return {'ok', all()}
"""

# A mailbox may exist without its task, as when the tasks are kept elsewhere. One whose task has expired is blank.
_BOX: Final = """
    local function done(value) return {'ok', value, expired and @owner, expired and @mark} end
    local function fit(first, last, unowned)
        local left = redis.call('PTTL', KEYS[1])
        if left == -2 then left = tonumber(unowned) end
        for number = first, last do
            if left == -1 then
                redis.call('PERSIST', KEYS[number])
            else
                redis.call('PEXPIRE', KEYS[number], math.max(left, 1))
            end
        end
    end
"""

_ENQUEUE: Final = """
    if ARGV[5] ~= '' then
        local state = redis.call('HGET', KEYS[4], ARGV[5])
        if state then return done(string.match(state, '^q(%S+) ') == op and 1 or 0) end
        redis.call('HSET', KEYS[4], ARGV[5], 'q' .. op .. ' ' .. ARGV[6])
        redis.call('RPUSH', KEYS[3], ARGV[6])
    end
    redis.call('RPUSH', KEYS[2], ARGV[6])
    fit(2, 4, ARGV[4])
    tell('m')
    return done(1)
"""

_DEQUEUE: Final = """
    local message = redis.call('HGET', KEYS[5], op)
    if message then return done(message) end
    message = redis.call('LPOP', KEYS[2])
    if message then
        redis.call('HSET', KEYS[5], op, message)
        redis.call('PEXPIRE', KEYS[5], 60000)
    end
    return done(message)
"""

_ANSWER: Final = """
    local state = redis.call('HGET', KEYS[4], ARGV[4])
    if not state then return done(0) end
    if string.sub(state, 1, 1) == 'a' then return done(string.match(state, '^a(%S+) ') == op and 1 or 0) end
    local question = string.match(state, '^q%S+ (.*)$')
    redis.call('LREM', KEYS[2], 1, question)
    redis.call('LREM', KEYS[3], 1, question)
    redis.call('HSET', KEYS[4], ARGV[4], 'a' .. op .. ' ' .. ARGV[5])
    tell('a')
    return done(1)
"""

# Who waits leaves a mark, which goes with everything else when the mailbox is cleared: so whoever missed the
# message of that sees it all the same (law L3). Arguments: milliseconds, mark, whether the wait begins.
_LOOK: Final = """
    local length = redis.call('LLEN', KEYS[2])
    if length > 0 then return done(length) end
    if ARGV[6] == '1' then
        redis.call('HSET', KEYS[6], ARGV[5], '')
        fit(6, 6, ARGV[4])
    elseif redis.call('HEXISTS', KEYS[6], ARGV[5]) == 0 then
        return done(-1)
    end
    return done(0)
"""

# Arguments: now, margin, members.
_UNINDEX: Final = """
    redis.call('ZREM', KEYS[1], unpack(ARGV, 3))
    redis.call('ZREM', KEYS[2], unpack(ARGV, 3))
    fit_index(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
"""

_CLEAR: Final = """
    redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
    redis.call('PUBLISH', ARGV[3], 'x')
    return {'ok'}
"""

# Arguments: lowest and highest score, limit, how a record's key begins and ends. With neither, records are not
# read: those that live in other slots of a cluster cannot be.
_PAGE: Final = """
    local found = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[2], 'WITHSCORES', 'LIMIT', 0, ARGV[3])
    local page = {}
    for number = 1, #found, 2 do
        local record = false
        if ARGV[4] ~= '' then
            local tag = string.match(found[number], '[^ ]+$')
            record = redis.call('HMGET', ARGV[4] .. tag .. ARGV[5], $ALL)
        end
        page[#page + 1] = {found[number], found[number + 1], record}
    end
    return page
"""

# Arguments, three for each: tag, the score that was found wrong, the right one or nothing.
_CORRECT: Final = """
    for number = 1, #ARGV, 3 do
        local score = redis.call('ZSCORE', KEYS[1], ARGV[number])
        if score and tonumber(score) == tonumber(ARGV[number + 1]) then
            if ARGV[number + 2] == '' then
                redis.call('ZREM', KEYS[1], ARGV[number])
            else
                redis.call('ZADD', KEYS[1], ARGV[number + 2], ARGV[number])
            end
        end
    end
    return 1
"""

SCRIPTS: Final[Mapping[str, Script]] = {
    "create": _script(_INDEXES, _TASK, _CREATE),
    "update": _script(_TASK, _EXISTING, _UPDATE),
    "finish": _script(_TASK, _EXISTING, _FINISH),
    "delete": _script(_TASK, _EXISTING, _DELETE),
    "purge": _script(_TASK, _EXISTING, "return {'no'}"),
    "renew": _script(_TASK, _EXISTING, _RENEW),
    "drop": _script(_TASK, _EXISTING, _DROP),
    "claim": _script(_TASK, _EXISTING, _CLAIM),
    "enqueue": _script(_TASK, _BOX, _ENQUEUE),
    "dequeue": _script(_TASK, _BOX, _DEQUEUE),
    "answer": _script(_TASK, _BOX, _ANSWER),
    "peek": _script(_TASK, _BOX, "return done(redis.call('LINDEX', KEYS[2], 0))"),
    "outstanding": _script(_TASK, _BOX, "return done(redis.call('LRANGE', KEYS[3], 0, -1))"),
    "answer_of": _script(_TASK, _BOX, "return done(redis.call('HGET', KEYS[4], ARGV[4]))"),
    "length": _script(_TASK, _BOX, "return done(redis.call('LLEN', KEYS[2]))"),
    "look": _script(_TASK, _BOX, _LOOK),
    "clear": _script(_CLEAR),
    "index": _script(_INDEXES, "return index(KEYS[1], KEYS[2], unpack(ARGV))"),
    "lease": _script(_INDEXES, "return lease(KEYS[1], unpack(ARGV))"),
    "unindex": _script(_INDEXES, _UNINDEX),
    "page": _script(_PAGE),
    "correct": _script(_CORRECT),
}
"""All scripts, by name."""
