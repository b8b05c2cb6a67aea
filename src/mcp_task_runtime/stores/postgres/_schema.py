"""The stored form of tasks in PostgreSQL, and the statements that make it. Imports no driver.

Everything stands in a database schema of its own (`mcp_task_runtime` unless another is named), so that
`DROP SCHEMA … CASCADE` removes all of it and nothing else. Version 3; earlier ones are brought to it in place.
Indexes may change without a new version, so that processes of an earlier version of this library go on with the schema:
those of 0.2.0 made `tasks_by_lease` in place of `tasks_held`.

`schema_migrations`: one row for each migration applied; the highest `version` is the schema's.

`secrets`: random values that all processes share, by `name`; `cursors` encrypts list cursors.

`tasks`, one row a task:

- `position`: order of creation; positions of list cursors
- `task_id`, `owner`, `status`, `status_message`, `created_at`, `last_updated_at`, `ttl_ms`,
  `poll_interval_ms`, `revision`, `retention_ms`: as in `Task` and `TaskRecord`
- `expires_at`: `created_at` plus `ttl_ms`, or NULL
- `request_method`, `request_name`, `request_arguments` (JSON), `progress_token` (JSON), `rerunnable`,
  `request_max_attempts`, `request_caller` (JSON), `sealed_credentials`: the `TaskRequest`
- `client_capabilities`: JSON
- `outcome` (JSON), `outcome_message`: the payload and message of the `Outcome`; there is one exactly when
  `status` is terminal, and its status is that
- `lease_worker`, `lease_expires_at`, `lease_attempt`: the `Lease`, or three times NULL; `lease_handovers`: its
  `handovers`
- `progress` (JSON): the `Progress`, or NULL
- `events`: the history without `created`: microseconds since 1970, the kind and, if there is one, the text,
  with a space between them
- `watchers`: random numbers of the processes to notify of changes: first the one that made the task, then those
  that waited for it; some may have ended. One that made the task for a worker stands with the complement of its number
  (`~`), and is notified of the end alone, on a channel of its own
- `operation`: random number of the latest call that changed the task, so that a call whose connection
  broke finds out whether it happened; NULL in rows of version 1
- `join_key`: names the call that the task was made for, if a repeated call joins it; otherwise NULL
- `tool`, from version 3 on: the first 200 characters of `request_name`, for indexes
- `is_error`, from version 3 on: whether the task completed with a result that says `isError`; false for one that
  completed before

`messages`, one row for each queued notification and for each request there ever was, kept as long as
the task's mailbox:

- `position`: order of enqueuing
- `mailbox`: the identifier of the task
- `task_id`: the same if `tasks` has that task, which then takes its messages with it when it
  is deleted; otherwise NULL
- `key`, `method`, `params` (JSON): the `QueuedMessage`; `key` is NULL for a notification
- `queued`: whether the message is in the queue
- `answer_type`, `answer` (JSON): the `Answer`, once there is one

`drop_belongings`: a function that deletes the steps and the mailbox of a task; `has_questions`: one that says whether
a mailbox has open questions but for some. Called by the statement that ends the task, or answers, they see what was
asked while that statement waited for the task; the statement itself does not.

`find_joinable`: a function that returns the task a repeated call joins, holding the key of the call until its statement
ends: it sees what was made while it waited for that.

`has_room`, from version 3 on: a function that says whether an owner has fewer live tasks than some number. Close to it,
the function holds the owner until its statement ends, and sees what was made while it waited for that. `count_live`
returns how many those are, up to a bound.

`steps`, one row for each recorded step of a task: `position`, `task_id`, `key` and `value` (JSON).

JSON is kept as text that PostgreSQL has checked (`json`, not `jsonb`): it is returned as it was given, and may
hold an escaped NUL. Other text cannot hold a NUL or a lone surrogate in PostgreSQL: these, and the escape
character itself, are kept as U+001A followed by four hexadecimal digits.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "HAS_INDEXES",
    "KEY_BYTES",
    "MAKE_MIGRATIONS",
    "MIGRATED",
    "MIGRATIONS",
    "NAME_LENGTH",
    "REINDEX",
    "SECRET",
    "VERSION",
]

KEY_BYTES: Final = 1024
"""The longest identifier, owner or key: PostgreSQL indexes no text of more than some 2,700 bytes."""

NAME_LENGTH: Final = 200
"""Characters of a tool's name that are indexed."""

_CLOSE: Final = 256
"""How close to its limit an owner's tasks are counted one after the other: more calls than overlap at a time."""

MIGRATIONS: Final = (
    """
    CREATE TABLE {tasks} (
        task_id text COLLATE "C" PRIMARY KEY,
        position bigint GENERATED ALWAYS AS IDENTITY,
        owner text COLLATE "C",
        status text NOT NULL,
        status_message text,
        created_at timestamptz NOT NULL,
        last_updated_at timestamptz NOT NULL,
        ttl_ms bigint,
        expires_at timestamptz,
        poll_interval_ms bigint NOT NULL,
        retention_ms bigint NOT NULL,
        revision bigint NOT NULL,
        request_method text NOT NULL,
        request_name text NOT NULL,
        request_arguments json NOT NULL,
        progress_token json,
        rerunnable boolean NOT NULL,
        client_capabilities json NOT NULL,
        outcome json,
        outcome_message text,
        lease_worker text,
        lease_expires_at timestamptz,
        lease_attempt integer,
        watchers bigint[] NOT NULL
    ) WITH (fillfactor = 85);
    CREATE INDEX tasks_by_owner ON {tasks} (owner, position);
    CREATE INDEX tasks_by_expiry ON {tasks} (expires_at) WHERE expires_at IS NOT NULL;
    CREATE INDEX tasks_by_lease ON {tasks} (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
    CREATE TABLE {messages} (
        position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        mailbox text COLLATE "C" NOT NULL,
        task_id text COLLATE "C" REFERENCES {tasks} ON DELETE CASCADE,
        key text COLLATE "C",
        method text NOT NULL,
        params json NOT NULL,
        queued boolean NOT NULL DEFAULT true,
        answer_type text,
        answer json,
        UNIQUE (mailbox, key)
    );
    CREATE INDEX messages_unanswered ON {messages} (mailbox, position) WHERE answer_type IS NULL;
    CREATE INDEX messages_by_task ON {messages} (task_id) WHERE task_id IS NOT NULL;
    """,
    f"""
    ALTER TABLE {{tasks}}
        ADD COLUMN request_max_attempts bigint NOT NULL DEFAULT 3,
        ADD COLUMN request_caller json NOT NULL DEFAULT '{{{{}}}}',
        ADD COLUMN sealed_credentials text,
        ADD COLUMN progress json,
        ADD COLUMN events text[] NOT NULL DEFAULT '{{{{}}}}',
        ADD COLUMN operation bigint,
        ADD COLUMN join_key text COLLATE "C";
    CREATE INDEX tasks_by_join_key ON {{tasks}} (join_key, position) WHERE join_key IS NOT NULL;
    CREATE FUNCTION {{find_joinable}}(text, timestamptz, bigint) RETURNS text LANGUAGE sql VOLATILE AS $find$
        SELECT pg_advisory_xact_lock(hashtextextended($1, 0));
        SELECT task_id FROM {{tasks}} WHERE join_key = $1 AND (expires_at IS NULL OR expires_at > $2)
            AND status <> 'cancelled' AND (
                status IN ('working', 'input_required') OR last_updated_at > $2 - $3 * interval '1 millisecond'
            )
            ORDER BY position DESC LIMIT 1
    $find$;
    CREATE INDEX tasks_by_position ON {{tasks}} (position);
    CREATE INDEX tasks_by_status ON {{tasks}} (status, position);
    CREATE INDEX tasks_by_name ON {{tasks}} (left(request_name, {NAME_LENGTH}), position);
    CREATE TABLE {{steps}} (
        position bigint GENERATED ALWAYS AS IDENTITY,
        task_id text COLLATE "C" REFERENCES {{tasks}} ON DELETE CASCADE,
        key text COLLATE "C",
        value json NOT NULL,
        PRIMARY KEY (task_id, key)
    );
    CREATE FUNCTION {{drop_belongings}}(text) RETURNS void LANGUAGE sql VOLATILE AS $drop$
        DELETE FROM {{steps}} WHERE task_id = $1;
        DELETE FROM {{messages}} WHERE mailbox = $1;
    $drop$;
    CREATE FUNCTION {{has_questions}}(text, text[]) RETURNS boolean LANGUAGE sql VOLATILE AS $has$
        SELECT EXISTS (
            SELECT FROM {{messages}} WHERE mailbox = $1 AND key <> ALL($2) AND answer_type IS NULL
        )
    $has$;
    CREATE TABLE {{secrets}} (name text PRIMARY KEY, value bytea NOT NULL);
    INSERT INTO {{secrets}} VALUES ('cursors', uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
    """,
    f"""
    ALTER TABLE {{tasks}}
        ADD COLUMN tool text GENERATED ALWAYS AS (left(request_name, {NAME_LENGTH})) STORED,
        ADD COLUMN is_error boolean NOT NULL DEFAULT false,
        ADD COLUMN lease_handovers integer NOT NULL DEFAULT 0;
    DROP INDEX {{tasks_by_status}};
    DROP INDEX {{tasks_by_name}};
    CREATE INDEX tasks_by_kind ON {{tasks}} (status, tool, position) INCLUDE (expires_at);
    CREATE INDEX tasks_by_error ON {{tasks}} (tool, position) INCLUDE (expires_at) WHERE is_error;
    CREATE INDEX tasks_waiting ON {{tasks}} (tool, lease_expires_at, position) WHERE lease_worker = '';
    CREATE INDEX tasks_live ON {{tasks}} ((coalesce('+' || owner, '')), expires_at)
        WHERE status IN ('working', 'input_required');
    CREATE FUNCTION {{count_live}}(text, timestamptz, bigint) RETURNS bigint LANGUAGE sql VOLATILE AS $count$
        SELECT count(*) FROM (
            SELECT FROM {{tasks}} WHERE coalesce('+' || owner, '') = coalesce('+' || $1, '')
                AND status IN ('working', 'input_required') AND (expires_at IS NULL OR expires_at > $2) LIMIT $3
        ) AS live
    $count$;
    CREATE FUNCTION {{has_room}}(text, timestamptz, bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $room$
    BEGIN
        IF $3 > {_CLOSE} AND {{count_live}}($1, $2, $3 - {_CLOSE}) < $3 - {_CLOSE} THEN
            RETURN true;
        END IF;
        PERFORM pg_advisory_xact_lock(hashtextextended(coalesce('+' || $1, ''), 1));
        RETURN {{count_live}}($1, $2, $3) < $3;
    END
    $room$;
    """,
)
"""The statements that lead from each version to the next; the first from an empty schema to version 1."""

REINDEX: Final = """
    SET LOCAL lock_timeout = '1s';
    DROP INDEX IF EXISTS {tasks_by_lease};
    CREATE INDEX tasks_held ON {tasks} (lease_expires_at, position) WHERE lease_worker <> '';
"""
"""The statements that give a schema of the latest version the indexes of this version of the library.

While they wait for a transaction that reads the tasks, such as a backup, all others wait for them: not for long.
"""
HAS_INDEXES: Final = "SELECT FROM pg_indexes WHERE schemaname = %s AND indexname = 'tasks_held'"

MAKE_MIGRATIONS: Final = (
    "CREATE TABLE {schema_migrations} (version integer PRIMARY KEY, applied_at timestamptz NOT NULL)"
)
MIGRATED: Final = "INSERT INTO {schema_migrations} (version, applied_at) VALUES (%(version)s, {now})"
VERSION: Final = "SELECT max(version) FROM {schema_migrations}"
SECRET: Final = "SELECT value FROM {secrets} WHERE name = 'cursors'"
