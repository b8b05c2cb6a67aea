"""The statements that read and write tasks in PostgreSQL; `_schema` says what they are about. Imports no driver.

They are templates: `Database.query` fills in the names of tables and of the channel, and the time: `{now}` is the
server's own, unless a clock was injected, whose time is then the parameter `now` (law L17). No statement sees a
task that has expired by it (law L7). What an update, an end and a claim do is decided in `core.transitions`; a test
holds these statements to it.
"""

from __future__ import annotations

from typing import Final

from mcp_task_runtime.core.sealed import SEALED_JSON
from mcp_task_runtime.core.transitions import EVENTS_KEPT, TERMINAL_STATUSES, TRANSITIONS
from mcp_task_runtime.stores.postgres._schema import NAME_LENGTH

__all__ = [
    "ALIVE",
    "ANSWER",
    "ANSWERS_OF",
    "ANSWER_ALL",
    "ASK",
    "BY_OPERATION",
    "CLAIM",
    "CLEAR",
    "COLUMNS",
    "CREATE",
    "CREATED",
    "DELETE",
    "DELETE_EXPIRED",
    "DEQUEUE",
    "DROP_LEASES",
    "ENQUEUE",
    "FINISH",
    "GET",
    "GET_OWNED",
    "GET_VIEW",
    "HISTORY",
    "JOIN",
    "JOINED",
    "LIST_LAPSED",
    "LIST_LOST",
    "LIST_OF_NOBODY",
    "LIST_OF_OWNER",
    "LOOK_AT_WATCHED",
    "LOOK_FOR_ANSWER",
    "LOOK_FOR_MESSAGE",
    "LOOK_FOR_UPDATE",
    "MESSAGE_OF_KEY",
    "OUTSTANDING",
    "PEEK",
    "PURGE",
    "READ_STEPS",
    "RECORD_STEP",
    "RENEW_LEASES",
    "SERVER_TIME",
    "STEP",
    "TAKE",
    "TAKEN",
    "TAKEN_BY_OPERATION",
    "TAKE_WORK",
    "TAKE_WORK_IN_TURN",
    "UPDATE",
    "WAITING",
    "WATCH",
    "own_channel",
]

SERVER_TIME: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

ALIVE: Final = "(expires_at IS NULL OR expires_at > {now})"
_LIVE: Final = (
    "status = ANY('{{" + ",".join(sorted(status for status in TRANSITIONS if status not in TERMINAL_STATUSES)) + "}}')"
)
# Of tasks that their identifiers find. With the column alone the planner may walk over all tasks of a status, or all
# that wait, where these were few when it last counted them.
_IS_LIVE: Final = _LIVE.replace("status", "(status || '')")
_FENCED: Final = """(%(fence_worker)s::text IS NULL
        OR (lease_worker = %(fence_worker)s::text AND lease_attempt = %(fence_attempt)s::bigint))"""
_MAIL: Final = (
    "mailbox = %(task_id)s AND NOT EXISTS"
    " (SELECT FROM {tasks} AS t WHERE t.task_id = m.task_id AND t.expires_at <= {now})"
)

# A notification is a letter for what happened, the transaction that did it where the order matters, and the task.
# It is sent where other processes watch the task. The maker that stands with the complement of its number waits for the
# end alone, and hears of it on a channel of its own, unless others must hear of it as well.
_OTHERS_WATCH: Final = "EXISTS (SELECT FROM unnest(watchers) AS w (number) WHERE number >= 0 AND number <> %(watcher)s)"
_NOTIFY_UPDATE: Final = "CASE WHEN " + _OTHERS_WATCH + " THEN pg_notify({channel}, 'u:' || task_id) END"
_NOTIFY_MESSAGE: Final = "pg_notify({channel}, 'm:' || task_id)"  # a waiter may have come before the task
_NOTIFY_ANSWER: Final = "CASE WHEN " + _OTHERS_WATCH + " THEN pg_notify({channel}, 'a:' || task_id) END"
_NOTIFY_WORK: Final = (  # a task that an engine carries waits for none of those that listen
    "CASE WHEN lease_worker = '' AND lease_expires_at <= {now} THEN pg_notify({channel}, 'w:') END"
)
_NOTIFY_GONE: Final = "pg_notify({channel}, 'd' || pg_current_xact_id()::text || ':' || task_id)"
_OWN_CHANNEL: Final = "mcp_task_runtime:"
_NOTIFY_END: Final = (
    f"CASE WHEN {_OTHERS_WATCH} THEN {_NOTIFY_GONE} WHEN watchers[1] < 0 AND watchers[1] <> ~%(watcher)s::bigint THEN "
    + _NOTIFY_GONE.replace("{channel}", f"'{_OWN_CHANNEL}' || (~watchers[1])::text")
    + " END"
)

COLUMNS: Final = (
    "task_id, status, status_message, created_at, last_updated_at, ttl_ms, poll_interval_ms, revision, owner,"
    " retention_ms, request_method, request_name, request_arguments::text, progress_token::text, rerunnable,"
    " client_capabilities::text, outcome::text, outcome_message, lease_worker, lease_expires_at, lease_attempt,"
    " request_max_attempts, request_caller::text, sealed_credentials, progress::text, lease_handovers"
)
_RETURNING: Final = " RETURNING " + COLUMNS + ", " + _NOTIFY_UPDATE


def own_channel(watcher: int) -> str:
    """Return the channel that only one process listens on."""
    return f"{_OWN_CHANNEL}{watcher}"


def _with_event(event: str) -> str:
    """Return the history with one event more; the oldest goes where there would be too many."""
    stamped = "(extract(epoch FROM {now}) * 1000000)::bigint::text || ' ' || " + event
    return f"(events || ({stamped}))[greatest(1, cardinality(events) - {EVENTS_KEPT - 2}):]"


_CHANGED: Final = """
        last_updated_at = greatest({now}, last_updated_at),
        operation = %(operation)s,
        revision = revision + 1"""

CREATE: Final = (
    """
    INSERT INTO {tasks} (
        task_id, owner, status, created_at, last_updated_at, ttl_ms, expires_at, poll_interval_ms, retention_ms,
        revision, request_method, request_name, request_arguments, progress_token, rerunnable, client_capabilities,
        request_max_attempts, request_caller, sealed_credentials, lease_worker, lease_expires_at, lease_attempt,
        watchers, operation, status_message
    ) VALUES (
        %(task_id)s, %(owner)s, %(status)s, {now}, {now}, %(ttl_ms)s::bigint,
        {now} + %(ttl_ms)s::bigint * interval '1 millisecond', %(poll_interval_ms)s, %(retention_ms)s, %(revision)s,
        %(method)s, %(name)s, %(arguments)s, %(progress_token)s, %(rerunnable)s, %(client_capabilities)s,
        %(max_attempts)s, %(caller)s, %(sealed_credentials)s, %(lease_worker)s,
        {now} + %(lease_ms)s::bigint * interval '1 millisecond', %(lease_attempt)s,
        ARRAY[CASE WHEN %(lease_worker)s::text = '' THEN ~%(watcher)s::bigint ELSE %(watcher)s::bigint END],
        %(operation)s, %(status_message)s
    ) ON CONFLICT (task_id) DO NOTHING RETURNING created_at, """
    + _NOTIFY_WORK
)

_VALUES, _END = ") VALUES (", ") ON CONFLICT (task_id)"
JOIN: Final = CREATE.replace(_VALUES, ", join_key) SELECT").replace(
    _END,
    """, %(join_key)s::text
    WHERE {find_joinable}(%(join_key)s::text, {now}, %(ended_ms)s::bigint) IS NULL ON CONFLICT (task_id)""",
)
"""Creates a task unless there is one to join."""

_HAS_ROOM: Final = "{has_room}(%(owner)s::text, {now}, %(max_live)s::bigint)"
CREATE_WITHIN: Final = CREATE.replace(_VALUES, ") SELECT").replace(
    _END, " WHERE " + _HAS_ROOM + " ON CONFLICT (task_id)"
)
"""Creates a task unless its owner has as many live ones as it may have."""

JOIN_WITHIN: Final = JOIN.replace(" ON CONFLICT (task_id)", " AND " + _HAS_ROOM + " ON CONFLICT (task_id)")
"""Does both."""

HAS_ROOM: Final = "SELECT " + _HAS_ROOM

COUNT_LIVE: Final = "SELECT {count_live}(%(owner)s::text, {now}, NULL)"

JOINED: Final = (
    "SELECT " + COLUMNS + " FROM {tasks} WHERE task_id ="
    " {find_joinable}(%(join_key)s::text, {now}, %(ended_ms)s::bigint)"
)

# Not by its operation: a worker may have claimed the task before its maker hears that it is there.
CREATED: Final = (
    "SELECT created_at FROM {tasks}"
    " WHERE task_id = %(task_id)s AND watchers[1] IN (%(watcher)s::bigint, ~%(watcher)s::bigint) AND " + ALIVE
)

TAKEN: Final = "SELECT FROM {tasks} WHERE task_id = %(task_id)s AND " + ALIVE

DELETE_EXPIRED: Final = "DELETE FROM {tasks} WHERE task_id = %(task_id)s AND expires_at <= {now}"

PURGE: Final = """
    DELETE FROM {tasks} WHERE task_id IN (
        SELECT task_id FROM {tasks} WHERE expires_at <= {now} ORDER BY expires_at
        LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )"""

GET: Final = "SELECT " + COLUMNS + " FROM {tasks} WHERE task_id = %(task_id)s AND " + ALIVE

LOOK_FOR_UPDATE: Final = (
    "SELECT "
    + COLUMNS
    + ", watchers @> ARRAY[%(watcher)s]::bigint[] FROM {tasks} WHERE task_id = %(task_id)s AND "
    + ALIVE
)

GET_VIEW: Final = (
    "SELECT "
    + COLUMNS
    + """, ARRAY(
        SELECT ARRAY[m.key, m.method, m.params::text] FROM {messages} AS m
        WHERE m.mailbox = %(task_id)s AND m.key IS NOT NULL AND m.answer_type IS NULL AND """
    + _LIVE
    + " ORDER BY m.position) FROM {tasks} WHERE task_id = %(task_id)s AND "
    + ALIVE
)

GET_OWNED: Final = GET_VIEW + " AND owner IS NOT DISTINCT FROM %(owner)s::text"

BY_OPERATION: Final = (
    "SELECT " + COLUMNS + " FROM {tasks} WHERE task_id = %(task_id)s AND operation = %(operation)s AND " + ALIVE
)

UPDATE: Final = (
    """
    UPDATE {tasks} SET
        status = coalesce(%(status)s::text, status),
        status_message = coalesce(%(status_message)s::text, status_message),
        progress = coalesce(%(progress)s::json, progress),
        ttl_ms = coalesce(%(ttl_ms)s::bigint, ttl_ms),
        expires_at = CASE WHEN %(ttl_ms)s::bigint IS NULL THEN expires_at
            ELSE created_at + %(ttl_ms)s::bigint * interval '1 millisecond' END,
        events = CASE WHEN %(event)s::text IS NULL THEN events ELSE """
    + _with_event("%(event)s::text")
    + " END,"
    + _CHANGED
    + """
    WHERE task_id = %(task_id)s AND (status || '') = ANY(%(sources)s::text[]) AND """
    + _FENCED
    + " AND (%(if_revision)s::bigint IS NULL OR revision = %(if_revision)s::bigint) AND "
    + ALIVE
    + _RETURNING
)

_TTL: Final = """CASE WHEN ttl_ms IS NOT NULL THEN greatest(
            ttl_ms,
            ceil(extract(epoch FROM greatest({now}, last_updated_at) - created_at) * 1000)::bigint + retention_ms
        ) END"""

FINISH: Final = (
    """
    UPDATE {tasks} SET
        status = %(status)s,
        status_message = CASE WHEN %(status_message)s::text IS NULL AND %(status)s::text <> 'completed'
            THEN status_message ELSE %(status_message)s::text END,
        ttl_ms = """
    + _TTL
    + """,
        expires_at = created_at + """
    + _TTL
    + """ * interval '1 millisecond',
        outcome = %(outcome)s,
        outcome_message = %(status_message)s,
        is_error = %(is_error)s,
        lease_worker = NULL,
        lease_expires_at = NULL,
        lease_attempt = NULL,
        lease_handovers = 0,
        events = """
    + _with_event("%(event)s::text")
    + ","
    + _CHANGED
    + """
    WHERE task_id = %(task_id)s AND (status || '') = ANY(%(sources)s::text[]) AND """
    + _FENCED
    + " AND "
    + ALIVE
    + " RETURNING "
    + COLUMNS
    + ", {drop_belongings}(task_id), "
    + _NOTIFY_END
)

WATCH: Final = (
    "UPDATE {tasks} SET watchers = watchers || %(watcher)s::bigint"
    " WHERE task_id = ANY(%(task_ids)s::text[]) AND NOT watchers @> ARRAY[%(watcher)s]::bigint[]"
)

LOOK_AT_WATCHED: Final = (
    "SELECT task_id, revision, NOT " + _LIVE + ", watchers @> ARRAY[%(watcher)s]::bigint[],"
    " watchers @> ARRAY[~%(watcher)s::bigint] FROM {tasks}"
    " WHERE task_id = ANY(%(task_ids)s::text[]) AND " + ALIVE
)

DELETE: Final = (
    "DELETE FROM {tasks} WHERE task_id = %(task_id)s AND "
    + ALIVE
    + " RETURNING {drop_belongings}(task_id), "
    + _NOTIFY_GONE
)

# Two statements: `owner IS NOT DISTINCT FROM` would use no index.
_LIST: Final = "SELECT position, " + COLUMNS + " FROM {tasks} WHERE "
_PAGE: Final = " AND position > %(after)s AND " + ALIVE + " ORDER BY position LIMIT %(limit)s"
LIST_OF_OWNER: Final = _LIST + "owner = %(owner)s" + _PAGE
LIST_OF_NOBODY: Final = _LIST + "owner IS NULL" + _PAGE

# --- leases ---

RENEW_LEASES: Final = (
    "UPDATE {tasks} SET lease_expires_at = {now} + %(lease_ms)s::bigint * interval '1 millisecond'"
    " WHERE task_id = ANY(%(task_ids)s) AND (lease_worker || '') = %(worker)s AND " + ALIVE + " RETURNING task_id"
)

DROP_LEASES: Final = (
    """
    UPDATE {tasks} SET
        lease_expires_at = CASE WHEN %(lapse)s THEN least({now}, lease_expires_at) END,
        lease_worker = CASE WHEN %(lapse)s THEN lease_worker END,
        lease_attempt = CASE WHEN %(lapse)s THEN lease_attempt END,
        lease_handovers = CASE WHEN %(lapse)s
            THEN lease_handovers + CASE WHEN lease_expires_at > {now} THEN 1 ELSE 0 END ELSE 0 END,
        events = """
    + _with_event("'released ' || %(event)s::text || '#' || lease_attempt::text")
    + """
    WHERE task_id = ANY(%(task_ids)s) AND (lease_worker || '') = %(worker)s
        AND NOT (%(is_repeated)s AND lease_expires_at <= {now}) AND """
    + ALIVE
)
"""Repeated to let leases lapse, it leaves what has lapsed: the attempt before did that, and wrote its event."""

_BY_LAPSE: Final = "lease_expires_at, position LIMIT %(limit)s"
_FIRST_LAPSED: Final = f" ORDER BY {_BY_LAPSE}"


def _lapsed(condition: str) -> str:
    """Return the query for the live tasks whose lease lapsed first, of those that meet a condition."""
    lapsed = f"{condition} AND lease_expires_at <= {{now}} AND {ALIVE}"
    return f"SELECT position, {COLUMNS} FROM {{tasks}} WHERE {lapsed}{_FIRST_LAPSED}"


CLAIM: Final = (
    """
    UPDATE {tasks} SET
        lease_worker = %(worker)s,
        lease_expires_at = {now} + %(lease_ms)s::bigint * interval '1 millisecond',
        lease_attempt = lease_attempt + CASE WHEN %(worker)s::text = '' THEN 0 ELSE 1 END,
        watchers = CASE WHEN watchers @> ARRAY[%(watcher)s]::bigint[] THEN watchers
            ELSE watchers || %(watcher)s::bigint END,
        events = """
    + _with_event(
        "CASE WHEN %(worker)s::text = '' THEN 'released #' || lease_attempt::text"
        " ELSE 'claimed ' || %(event)s::text || '#' || (lease_attempt + 1)::text END"
    )
    + ","
    + _CHANGED
    + """
    WHERE task_id = %(task_id)s AND """
    + _IS_LIVE
    + " AND (lease_expires_at <= {now} OR (lease_worker = '' AND %(worker)s::text <> '')) AND "
    + ALIVE
    + _RETURNING
    + ", "
    + _NOTIFY_WORK
)

_HELD: Final = "(" + _lapsed("lease_worker <> ''") + ")"


def _of_each(tools: str, condition: str) -> str:
    """Return the query for the tasks that wait of each tool in turn: those of others are not walked over."""
    each = _lapsed(f"{condition} AND lease_worker = ''")
    return f"SELECT found.* FROM {tools} CROSS JOIN LATERAL ({each}) AS found{_FIRST_LAPSED}"


WAITING: Final = _of_each(
    "unnest(%(names)s::text[]) AS wanted (name)",
    f"tool = left(wanted.name, {NAME_LENGTH}) AND request_name = wanted.name",
)
LIST_LOST: Final = f"SELECT * FROM ({_HELD} UNION ALL ({WAITING})) AS found ORDER BY lease_worker = '', {_BY_LAPSE}"

_NEXT_TOOL: Final = "SELECT tool FROM {tasks} WHERE lease_worker = ''"
LIST_LAPSED: Final = (
    f"WITH RECURSIVE waiting (name) AS (({_NEXT_TOOL} ORDER BY tool LIMIT 1)"
    f" UNION ALL SELECT ({_NEXT_TOOL} AND tool > name ORDER BY tool LIMIT 1) FROM waiting WHERE name IS NOT NULL)"
    f" {_HELD} UNION ALL ({_of_each('waiting', 'tool = waiting.name')}){_FIRST_LAPSED}"
)

# --- taking work ---

_OPENABLE: Final = (
    "(%(with_sealed)s::boolean OR NOT starts_with(request_arguments::text, '"
    + SEALED_JSON.replace("{", "{{").replace("}", "}}")
    + "'))"
)
_COUNTABLE: Final = f"lease_attempt < {2**31 - 1} AND revision < {2**63 - 1}"
"""Not so of a row that is damaged: what counts its attempts and revisions would fail for all that are taken with it."""

_TAKE: Final = (
    """
        lease_worker = %(worker)s,
        lease_expires_at = {now} + %(lease_ms)s::bigint * interval '1 millisecond',
        lease_attempt = lease_attempt + 1,
        watchers = CASE WHEN watchers @> ARRAY[%(watcher)s]::bigint[] THEN watchers
            ELSE watchers || %(watcher)s::bigint END,
        events = """
    + _with_event("'claimed ' || %(event)s::text || '#' || (lease_attempt + 1)::text")
    + ","
    + _CHANGED
)

TAKE: Final = (
    "UPDATE {tasks} SET "
    + _TAKE
    + " WHERE task_id = %(task_id)s AND (lease_worker || '') = '' AND request_name = ANY(%(names)s::text[]) AND "
    + _OPENABLE
    + " AND "
    + _IS_LIVE
    + " AND "
    + ALIVE
    + _RETURNING
)


def _each_waiting(condition: str, end: str) -> str:
    """Return what finds tasks that may be taken: as in WAITING, those of each tool in turn."""
    return (
        "unnest(%(names)s::text[]) AS tools (name) CROSS JOIN LATERAL (SELECT task_id, lease_expires_at FROM {tasks}"
        f" WHERE tool = left(tools.name, {NAME_LENGTH}) AND request_name = tools.name AND lease_worker = ''"
        f" AND lease_expires_at <= {{now}} AND {condition} AND {_COUNTABLE} AND {_LIVE} AND {ALIVE}"
        f" {end}) AS found"
    )


# The last two columns are of the only row where nothing was taken: whether that is because other workers look at the
# same tasks, and whether sealed ones wait.
TAKE_WORK: Final = (
    "WITH wanted AS (SELECT found.* FROM "
    + _each_waiting(_OPENABLE, "ORDER BY lease_expires_at, position LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED")
    + " ORDER BY lease_expires_at LIMIT %(limit)s), taken AS (UPDATE {tasks} AS t SET "
    + _TAKE
    + " FROM (SELECT task_id AS chosen, lease_expires_at AS since FROM wanted) AS w WHERE task_id = chosen"
    + " RETURNING position, "
    + COLUMNS
    + ", since, "
    + _NOTIFY_UPDATE
    + ") SELECT taken.*, CASE WHEN position IS NULL THEN EXISTS (SELECT FROM "
    + _each_waiting(_OPENABLE, "LIMIT 1")
    + ") END, CASE WHEN position IS NULL AND NOT %(with_sealed)s::boolean THEN EXISTS (SELECT FROM "
    + _each_waiting("NOT " + _OPENABLE, "LIMIT 1")
    + ") END FROM (VALUES (true)) AS one LEFT JOIN taken ON true"
)

TAKE_WORK_IN_TURN: Final = TAKE_WORK.replace(" SKIP LOCKED", "")
"""Waits for workers that look at the same tasks: what it does not find does not wait."""

TAKEN_BY_OPERATION: Final = (
    "SELECT position, "
    + COLUMNS
    + ", lease_expires_at FROM {tasks} WHERE lease_worker <> '' AND lease_expires_at > {now}"
    + " AND lease_worker = %(worker)s AND operation = ANY(%(operations)s::bigint[]) AND "
    + ALIVE
)
"""Its cost is linear in the leases that are held."""

# --- questions ---

# The task is locked first: a question is asked of a live task, and no end overtakes it.
ASK: Final = (
    """
    WITH task AS (
        SELECT task_id FROM {tasks} WHERE task_id = %(task_id)s AND """
    + _IS_LIVE
    + " AND "
    + _FENCED
    + " AND "
    + ALIVE
    + """ FOR NO KEY UPDATE
    ), question AS (
        INSERT INTO {messages} (mailbox, task_id, key, method, params)
        SELECT task_id, task_id, %(key)s, %(method)s, %(params)s::json FROM task
        ON CONFLICT (mailbox, key) DO NOTHING RETURNING mailbox
    )
    UPDATE {tasks} SET
        status = 'input_required',
        events = """
    + _with_event("%(event)s::text")
    + ","
    + _CHANGED
    + """
    WHERE task_id = %(task_id)s AND (SELECT count(*) FROM question) > 0"""
    + _RETURNING
    + ", "
    + _NOTIFY_MESSAGE
)

# As in ASK, the task is locked first. What is asked meanwhile has to wait, or is seen by `has_questions`.
ANSWER_ALL: Final = (
    """
    WITH task AS (
        SELECT task_id FROM {tasks} WHERE task_id = %(task_id)s AND """
    + _IS_LIVE
    + " AND "
    + ALIVE
    + """ FOR NO KEY UPDATE
    ), taken AS (
        UPDATE {messages} AS m SET answer_type = given.type, answer = given.answer::json, queued = false
        FROM unnest(%(keys)s::text[], %(types)s::text[], %(answers)s::text[], %(events)s::text[]) WITH ORDINALITY
            AS given (key, type, answer, event, number)
        WHERE m.mailbox = %(task_id)s AND m.key = given.key AND m.answer_type IS NULL AND EXISTS (SELECT FROM task)
        RETURNING m.key, given.event, given.number
    )
    UPDATE {tasks} SET
        status = CASE WHEN {has_questions}(task_id, %(keys)s::text[]) THEN 'input_required' ELSE 'working' END,
        events = (
            events || ARRAY(
                SELECT (extract(epoch FROM {now}) * 1000000)::bigint::text || ' ' || event FROM taken ORDER BY number
            )
        )[greatest(1, cardinality(events) + (SELECT count(*)::int FROM taken) - """
    + str(EVENTS_KEPT - 1)
    + """):],"""
    + _CHANGED
    + """
    WHERE task_id = %(task_id)s AND (SELECT count(*) FROM taken) > 0
    RETURNING (SELECT array_agg(key) FROM taken), """
    + _NOTIFY_UPDATE
    + ", "
    + _NOTIFY_ANSWER
)

ANSWERS_OF: Final = (
    "SELECT key, answer_type, answer::text FROM {messages} AS m WHERE " + _MAIL + " AND key = ANY(%(keys)s::text[])"
)

# --- the queue ---

ENQUEUE: Final = (
    """
    INSERT INTO {messages} AS m (mailbox, task_id, key, method, params) VALUES (
        %(task_id)s, (SELECT task_id FROM {tasks} WHERE task_id = %(task_id)s AND """
    + ALIVE
    + """), %(key)s, %(method)s, %(params)s
    ) ON CONFLICT (mailbox, key) DO NOTHING RETURNING pg_notify({channel}, 'm:' || mailbox)"""
)

MESSAGE_OF_KEY: Final = (
    "SELECT m.position, m.key, m.method, m.params::text FROM {messages} AS m WHERE " + _MAIL + " AND key = %(key)s"
)

_HEAD: Final = (
    "SELECT m.position, m.key, m.method, m.params::text AS params FROM {messages} AS m WHERE "
    + _MAIL
    + " AND queued AND answer_type IS NULL ORDER BY position LIMIT 1"
)
PEEK: Final = _HEAD

# A request stays, for its answer; a notification goes.
DEQUEUE: Final = (
    "WITH head AS ("
    + _HEAD
    + """ FOR UPDATE),
    taken AS (
        UPDATE {messages} AS m SET queued = false FROM head WHERE m.position = head.position AND m.key IS NOT NULL
    ), gone AS (
        DELETE FROM {messages} AS m USING head WHERE m.position = head.position AND m.key IS NULL
    )
    SELECT position, key, method, params FROM head"""
)

OUTSTANDING: Final = (
    "SELECT m.position, m.key, m.method, m.params::text FROM {messages} AS m WHERE "
    + _MAIL
    + " AND key IS NOT NULL AND answer_type IS NULL ORDER BY position"
)

ANSWER: Final = (
    "UPDATE {messages} AS m SET answer_type = %(answer_type)s, answer = %(answer)s, queued = false WHERE "
    + _MAIL
    + " AND key = %(key)s AND answer_type IS NULL RETURNING pg_notify({channel}, 'a:' || mailbox)"
)

CLEAR: Final = """
    WITH gone AS (DELETE FROM {messages} WHERE mailbox = %(task_id)s)
    SELECT pg_notify({channel}, 'c' || pg_current_xact_id()::text || ':' || %(task_id)s::text)"""

LOOK_FOR_ANSWER: Final = """
    SELECT m.answer_type, m.answer::text, t.expires_at, coalesce(t.watchers @> ARRAY[%(watcher)s]::bigint[], true)
    FROM {messages} AS m LEFT JOIN {tasks} AS t ON t.task_id = m.task_id
    WHERE m.mailbox = %(task_id)s AND m.key = %(key)s AND (t.expires_at IS NULL OR t.expires_at > {now})"""

# The last column bounds the transactions that this look, or anything that came before it, can have seen.
LOOK_FOR_MESSAGE: Final = (
    "SELECT EXISTS (SELECT FROM {messages} AS m WHERE "
    + _MAIL
    + """ AND queued AND answer_type IS NULL),
        t.task_id IS NOT NULL,
        coalesce(t.expires_at <= {now}, false),
        t.expires_at,
        coalesce(t.watchers @> ARRAY[%(watcher)s]::bigint[], true),
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
        coalesce(NOT """
    + _LIVE
    + """, false)
    FROM (VALUES (true)) AS one LEFT JOIN {tasks} AS t ON t.task_id = %(task_id)s"""
)

# --- steps ---

RECORD_STEP: Final = (
    """
    WITH task AS (
        SELECT task_id FROM {tasks} WHERE task_id = %(task_id)s AND """
    + _IS_LIVE
    + " AND "
    + _FENCED
    + " AND "
    + ALIVE
    + """ FOR SHARE
    )
    INSERT INTO {steps} (task_id, key, value) SELECT task_id, %(key)s, %(value)s::json FROM task
    ON CONFLICT (task_id, key) DO NOTHING RETURNING value::text"""
)

STEP: Final = "SELECT value::text FROM {steps} WHERE task_id = %(task_id)s AND key = %(key)s"

READ_STEPS: Final = (
    "SELECT key, value::text FROM {steps} WHERE task_id = %(task_id)s"
    " AND EXISTS (SELECT FROM {tasks} WHERE task_id = %(task_id)s AND " + ALIVE + ") ORDER BY position"
)

# --- what operators ask ---

HISTORY: Final = "SELECT created_at, events FROM {tasks} WHERE task_id = %(task_id)s AND " + ALIVE

DIAGNOSE: Final = """
SELECT (SELECT max(version) FROM {schema_migrations}),
    current_setting('server_version'), current_setting('fsync') = 'on', current_setting('synchronous_commit') <> 'off',
    pg_is_in_recovery()"""
