"""What the pages of the project say is so, and which test proves it.

Each entry is a fragment of a sentence and, indented, the tests that would fail if the sentence were false. A sentence
that changes no longer has its fragment: look at its tests. A test that is renamed or removed is missed here: look at
its sentence. What no program can check (an invitation, a reason, a promise of people) has no entry. The figures of
`.github/benchmarks.svg` are those of a machine, and come from `tests/benchmarks`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

README = """
a task: the client gets a handle at once
    mcp_v2/test_wire_rules.py::test_c4_a_task_can_be_fetched_as_soon_as_its_handle_is_there
    mcp_v2/test_adopt.py::test_the_handle_comes_before_work_that_blocks_the_event_loop
the work goes on without the connection
    mcp_v2/test_server.py::test_tasks_outlive_their_client_while_the_server_runs
    mcp_v1/test_low_level.py::test_a_task_lives_on_when_its_connection_ends_and_nothing_holds_the_runtime
asks its user in mid-function, reports progress, can be cancelled
    mcp_v2/test_server.py::test_a_call_becomes_a_task_that_asks_and_finishes
    mcp_v2/test_unwinding.py::test_the_sdks_own_context_asks_and_reports_through_the_task
    mcp_v2/test_server.py::test_cancelling_stops_the_work_and_runs_its_clean_up
survives restarts and runs on other machines
    mcp_v2/test_balanced.py::test_work_of_a_process_that_is_replaced_goes_on_in_the_other_or_has_failed
    mcp_v2/test_worker_processes.py::test_no_task_is_lost_when_a_worker_is_killed_and_another_one_paused
One function serves clients of both task protocols of MCP (2025-11-25, 2026-07-28), and of neither
    mcp_v2/test_legacy_http.py::test_both_eras_are_served_on_one_endpoint_and_see_nothing_of_each_other
    mcp_v2/test_server.py::test_an_optional_tool_runs_within_the_call_of_a_client_that_takes_no_tasks
Server-->>Client: input_required: "Publish it?"
    test_readme.py::test_the_quickstart_prints_what_the_readme_shows
pip install 'mcp-task-runtime[mcp]'
    test_packaging.py::test_a_page_names_no_extra_that_is_not_there
.venv/bin/pip install '.[mcp]' && .venv/bin/python examples/quickstart.py
    test_readme.py::test_the_quickstart_prints_what_the_readme_shows
It starts the server below over stdio, with a client that prints what it sees
    test_readme.py::test_the_quickstart_of_the_readme_is_the_quickstart_of_the_examples
    test_readme.py::test_the_quickstart_prints_what_the_readme_shows
tasks = Tasks() # in memory; a store makes it durable
    test_readme.py::test_a_block_of_the_readme_runs
Run the server as before: `mcp.run("stdio")`, or over HTTP
    mcp_v2/test_transports.py::test_every_tool_of_the_everything_server_does_as_it_says
The parameter annotated as `ServerTaskContext` is filled in, and does not show in the tool's schema
    mcp_v2/test_like_plain_tools.py::test_the_context_parameter_shows_in_no_schema_and_can_be_passed_by_no_client
Validation, structured content and errors stay the SDK's own
    mcp_v2/test_like_plain_tools.py::test_a_tool_that_runs_as_a_task_has_the_schemas_results_and_errors_of_a_plain_one
    mcp_v1/test_differential.py::test_a_call_with_tasks_answers_as_the_sdk_alone
`Tasks` is the class for the SDK that is installed
    test_server_module.py::test_it_gives_the_class_of_the_installed_line
    mcp_v1/test_low_level.py::test_the_server_module_gives_the_class_of_the_installed_line
`mcp` 1.23 to 1.30 (`FastMCP`, low-level) or 2.x (`MCPServer`, low-level)
    test_packaging.py::test_the_oldest_versions_that_are_allowed_are_those_that_are_tested
    mcp_v1/test_low_level.py::test_run_makes_the_call_a_task_with_an_immediate_response_for_the_model
    mcp_v2/test_server.py::test_a_low_level_server_runs_work_as_a_task
Servers of the package `fastmcp` 4 install with the same line
    fastmcp/test_fastmcp.py::test_its_tools_run_as_tasks_and_ask_through_them
a new tool there is `@mcp.tool` above `@tasks.task()`
    fastmcp/test_fastmcp.py::test_its_tools_run_as_tasks_and_ask_through_them
    fastmcp/test_fastmcp.py::test_tool_says_how_a_new_tool_is_made_here
Name them; their code stays. Their `ctx.elicit`, `ctx.report_progress` and sampling go through the task
    mcp_v2/test_adopt.py::test_its_own_context_asks_and_reports_through_the_task
    mcp_v1/test_adopt.py::test_its_own_context_asks_and_reports_through_the_task
    mcp_v2/test_promotion.py::test_sampling_through_the_sdk_asks_through_the_task
with options; it may be registered later
    mcp_v2/test_adopt.py::test_its_options_hold_under_both_revisions
    mcp_v2/test_adopt.py::test_a_tool_runs_as_a_task_whenever_it_is_registered
**New tools**, here on `mcp` 1.x
    mcp_v1/test_readme.py::test_a_block_of_the_readme_runs
turns any call that takes longer than five seconds into a task
    mcp_v2/test_promotion.py::test_a_slow_call_becomes_a_task_when_its_time_is_over_and_not_before
    mcp_v2/test_undeclared_tools.py::test_any_call_can_become_a_task_under_promote_after
accepts task calls without showing it in `tools/list`: some clients drop tools that show it
    clients/test_clients.py::test_every_cell_works_or_names_the_limit_of_the_client
    mcp_v2/test_adopt.py::test_a_mode_that_is_not_advertised_is_accepted_all_the_same
    mcp_v1/test_adopt.py::test_what_is_not_named_stays_forbidden_and_what_is_not_advertised_is_accepted
stops every client of the process. `blocking=True` runs it in a thread
    mcp_v2/test_server.py::test_a_blocking_tool_holds_up_no_other_request
calls `tasks.run(work)` in its handler: `examples/low_level_server.py`, `examples/low_level_server_v1.py`
    test_examples_index.py::test_each_example_is_run_by_the_gate_or_by_a_test
    mcp_v1/test_examples.py::test_the_low_level_example_runs_its_work_as_a_task
    mcp_v2/test_server.py::test_a_low_level_server_runs_work_as_a_task
    mcp_v1/test_low_level.py::test_run_makes_the_call_a_task_with_an_immediate_response_for_the_model
does what `install` does with the SDK's public arguments; write `@tasks.task()` under `@mcp.tool()` then
    mcp_v2/test_server.py::test_constructor_arguments_do_without_install
The docstring of `mcp_task_runtime.adapters.mcp_v1` has every name and change
    mcp_v1/test_low_level.py::test_what_the_sdks_context_has_is_here_by_the_same_name_or_in_the_table
    mcp_v1/test_low_level.py::test_what_run_task_of_the_sdk_takes_is_in_the_table
    mcp_v1/test_migration.py::test_each_name_of_the_sdks_experiment_is_in_the_table
One that takes no tasks waits for the result, and is asked as its protocol allows
    mcp_v2/test_input_rounds.py::test_every_kind_of_tool_asks_in_rounds_and_side_by_side
    mcp_v2/test_server.py::test_a_legacy_client_is_asked_within_its_call
one of 2025-11-25 cannot be asked over HTTP that is stateless or answers with JSON
    mcp_v1/test_http.py::test_it_holds_without_sessions_that
    mcp_v1/test_http.py::test_it_holds_with_json_that
    mcp_v2/test_legacy_http.py::test_it_holds_without_sessions_that
    mcp_v2/test_legacy_http.py::test_it_holds_with_json_that
These were driven against both SDK lines
    clients/test_clients.py::test_every_cell_works_or_names_the_limit_of_the_client
    clients/test_clients.py::test_the_readme_has_a_row_for_each_client
| client | plain call | as a task | question, plain | question in a task | sampling | cancel | progress |
    clients/test_clients.py::test_the_readme_has_a_row_for_each_client
is what the client itself cannot do
    clients/test_clients.py::test_every_cell_works_or_names_the_limit_of_the_client
How to call task tools from agents: `examples/agents/`
    clients/test_agents.py::test_the_example_for_an_agent_gets_the_result_of_a_task_tool
`call_tool` waits for the task, answers its questions with the callbacks that the client has anyway
    mcp_v2/test_client.py::test_a_question_is_answered_by_the_client_s_own_callback
cancels the task when the call is cancelled
    mcp_v2/test_client.py::test_a_cancelled_call_cancels_its_task_on_the_server_c14
a tool may also answer with its result at once
    mcp_v2/test_client.py::test_start_returns_the_result_of_a_call_that_became_no_task_c14
On `mcp` 1.x it works over the SDK's `ClientSession`; see `mcp_task_runtime.client`
    mcp_v1/test_client.py::test_the_client_of_the_installed_line_is_this_one
    mcp_v1/test_client.py::test_a_call_returns_the_result_whether_it_was_a_task_or_not
| call | what it does |
    test_readme.py::test_work_can_call_what_the_readme_lists
says what the work is doing, and how far it is
    adapters/test_server_context.py::test_a_status_message_is_stored_and_the_client_is_told_unless_asked_not_to
    adapters/test_server_context.py::test_progress_shows_in_the_status_message
asks the user to fill a form; the answer has `data` or `content`
    adapters/test_server_context.py::test_a_form_asked_for_as_a_model_comes_back_as_one
    adapters/test_server_context.py::test_a_form_reaches_the_client_with_the_task_it_belongs_to
asks the user to open a URL
    adapters/test_server_context.py::test_a_url_is_asked_for_in_url_mode
lets the client's model write; `…_as_task`: as a task on the client's side (2025-11-25)
    adapters/test_server_context.py::test_a_message_is_asked_for_with_every_option_that_was_given_and_no_other
    adapters/test_server_context.py::test_a_message_as_a_task_and_a_typed_form_as_a_task_come_back_typed
runs a function and records its result: a rerun resumes behind it
    mcp_v2/test_reruns.py::test_a_rerun_resumes_behind_the_steps_that_have_ended
lets the task live longer, within the limits; the tasks that the call names as related
    adapters/test_arguments.py::test_extending_lets_a_task_live_longer_within_the_bounds
    mcp_v2/test_related_tasks.py::test_the_work_sees_the_tasks_that_the_call_names
says in a thread when to stop; async work is cancelled at its next `await`
    mcp_v2/test_server.py::test_a_cancelled_plain_function_sees_that_it_is_to_stop
    core/test_runtime.py::test_cancel_stops_the_work_at_its_next_await_and_runs_its_clean_up
leaves the task open; `await tasks.complete(task_id, result)` ends it from anywhere
    mcp_v2/test_server.py::test_a_detached_task_is_ended_by_its_id
Several questions may be open at once
    adapters/test_server_context.py::test_two_questions_at_once_each_get_their_own_answer
A question whose asker was cancelled, or whose `timeout=` passed, is withdrawn
    adapters/test_server_context.py::test_asking_cancelled_at_any_await_restores_the_status_and_withdraws_the_question
    adapters/test_arguments.py::test_a_question_that_is_not_answered_in_time_raises_and_is_withdrawn
JSON-RPC error that reaches the client verbatim, raise `ProtocolError(code, message, data)`
    mcp_v2/test_server.py::test_a_protocol_error_of_the_work_reaches_the_client_verbatim
Any other exception reaches the client as in a plain call; `Tasks(mask_errors=True)` keeps its text in the server
    mcp_v2/test_like_plain_tools.py::test_a_tool_that_runs_as_a_task_has_the_schemas_results_and_errors_of_a_plain_one
    mcp_v2/test_like_plain_tools.py::test_the_text_of_an_unexpected_exception_stays_in_the_server_on_demand
a duration is in seconds, or in milliseconds where its name ends in `_ms`
    test_options.py::test_a_duration_is_in_seconds_or_its_name_ends_in_ms
    test_options.py::test_the_readme_names_the_unit_of_an_option
a call that cannot become a task is refused (-32021; -32601 under 2025-11-25), and not just answered
    mcp_v2/test_wire_rules.py::test_c2_an_undeclared_call_of_a_required_tool_says_which_capability_is_missing
    mcp_v1/test_low_level.py::test_run_makes_the_call_a_task_with_an_immediate_response_for_the_model
running work is cancelled then and the task ends `failed`
    mcp_v2/test_server.py::test_l7_work_is_stopped_at_its_deadline_and_its_end_can_be_fetched_and_then_it_is_gone
milliseconds that clients wait between two polls
    mcp_v2/test_adopt.py::test_its_options_hold_under_both_revisions
seconds to wait for the result before the client gets a task instead
    mcp_v2/test_promotion.py::test_the_tools_own_number_counts_before_the_servers
what a client of 2025-11-25 tells its model while the task runs
    mcp_v1/test_low_level.py::test_run_makes_the_call_a_task_with_an_immediate_response_for_the_model
the work runs again when its process is lost, or raises what is named
    mcp_v2/test_reruns.py::test_a_lost_servers_work_goes_on_at_the_other_and_nobody_is_asked_twice
    mcp_v2/test_reruns.py::test_a_tool_that_raises_what_its_policy_names_runs_again
the tool blocks: run it in a thread with an event loop of its own
    mcp_v2/test_adopt.py::test_one_that_blocks_runs_in_a_thread_and_its_context_reaches_the_client_from_there
the same call of the same principal or session returns the task of the first one, while it is live or has just ended
    mcp_v2/test_joining.py::test_a_repeated_call_joins
    core/test_joining.py::test_how_long_an_ended_task_is_joined_is_a_setting
work waits there by its owner's turn; several tools may share one
    core/test_work_queues.py::test_owners_have_turns
    mcp_v2/test_queues.py::test_tools_of_one_queue_wait_together
whether worker processes run it, where there are some
    mcp_v2/test_workers.py::test_the_tool_of_a_call_runs_in_the_worker_and_asks_its_client
    mcp_v2/test_workers.py::test_what_cannot_travel_runs_where_it_was_called
development; one process whose tasks may be lost
    adapters/test_host.py::test_several_processes_that_keep_tasks_in_memory_are_warned_of_once
one machine, any number of processes
    stores/test_processes.py::test_questions_answers_and_results_cross
    stores/test_sqlite.py::test_what_was_acknowledged_outlives_a_kill
what that Redis survives; set `noeviction`
    stores/redis/test_trouble.py::test_a_restart_is_survived
    stores/redis/test_trouble.py::test_a_server_that_may_evict_is_warned_of_once
several machines, one database for all
    mcp_v2/test_balanced.py::test_questions_answers_changes_and_results_cross
    stores/test_crashes.py::test_no_kill_loses_a_task_or_leaves_one_working
With a shared store, any process serves any task: poll, answer and cancel through a balancer
    mcp_v2/test_balanced.py::test_the_sdks_client_need_not_know_who_serves_it
    mcp_v2/test_balanced.py::test_l9_a_cancel_through_one_stops_the_work_in_the_other
The process that runs the work holds a lease
    core/test_leases.py::test_renewals_keep_a_task_for_as_long_as_its_process_lives
When it is lost, the task fails and says so, or a `rerunnable` tool runs again elsewhere
    mcp_v2/test_reruns.py::test_work_that_may_not_run_again_fails_and_says_so
a question in the same words keeps its answer, a finished step its result (`examples/steps.py`)
    test_examples_index.py::test_each_example_is_run_by_the_gate_or_by_a_test
    mcp_v2/test_reruns.py::test_a_lost_servers_work_goes_on_at_the_other_and_nobody_is_asked_twice
    mcp_v2/test_reruns.py::test_a_rerun_resumes_behind_the_steps_that_have_ended
An outage is waited out for `?timeout=10` seconds
    stores/test_url.py::test_the_timeout_of_a_url_is_the_stores
    stores/test_sqlite_engine.py::test_an_outage_is_waited_out_and_others_go_on_meanwhile
    stores/redis/test_trouble.py::test_a_server_that_is_away_for_a_moment_is_waited_for
    stores/test_postgres_outages.py::test_a_server_that_is_away_for_a_moment_is_waited_out_and_the_log_says_so_once
Two servers on one database need a file, `?prefix=` (Redis) or `?schema=` (PostgreSQL) each
    mcp_v2/test_mounted.py::test_two_servers_in_one_application_keep_apart_with_a_store_each
    mcp_v2/test_mounted.py::test_two_servers_on_one_store_are_to_its_tasks_like_two_processes_of_one_server
    stores/test_url.py::test_known_parameters_are_taken
Several processes need a shared store: with `Tasks()` each has tasks of its own
    adapters/test_host.py::test_several_processes_that_keep_tasks_in_memory_are_warned_of_once
runs two
    mcp_v2/test_mounted.py::test_the_starlette_example_runs_with_two_workers_on_one_store
the server runs no work itself; any number of workers do, woken by the store
    core/test_dispatch.py::test_a_dispatched_task_waits_for_a_worker_and_runs_there
    mcp_v2/test_worker_processes.py::test_no_task_is_lost_when_a_worker_is_killed_and_another_one_paused
`mcp-tasks worker package.module:tasks --concurrency 8`
    mcp_v2/test_worker_processes.py::test_no_task_is_lost_when_a_worker_is_killed_and_another_one_paused
`DocketDispatcher` (Redis), `ProcrastinateDispatcher` (PostgreSQL), `CeleryDispatcher`
    engines/test_engines.py::test_no_task_is_lost_with_a_worker_or_with_the_broker
each with an example that starts its broker and two workers
    engines/test_examples.py::test_one_command_starts_a_broker_and_two_workers_and_stops_them
how any other engine takes ten lines
    engines/test_dbos.py::test_the_recipe_runs_tasks_in_a_worker_of_dbos
what a broker loses or delivers twice costs time and no task
    core/test_dispatch.py::test_a_broker_that_loses_all_costs_time_and_no_task
    core/test_work_by_name.py::test_of_many_that_execute_a_task_one_runs_it
Work sees its caller in each process (`task.caller`); a token travels only with `Tasks(credentials=…)`, sealed
    mcp_v2/test_callers.py::test_a_worker_sees_the_caller_and_none_of_its_secrets
    mcp_v2/test_callers.py::test_a_worker_sees_the_credentials_that_are_kept_also_with_a_rotated_key
    mcp_v2/test_callers.py::test_what_is_sealed_can_be_read_by_nothing_else_and_moved_to_no_other_task
`python examples/workers.py` starts a server and two
    test_examples_index.py::test_each_example_is_run_by_the_gate_or_by_a_test
A store of your own implements the nine members of `TaskStore`
    test_readme.py::test_a_store_has_as_many_members_as_the_readme_says
the kit in `mcp_task_runtime.testing` checks that it keeps the laws and says which one it breaks
    kit/test_checks_kill_mutants.py::test_each_law_is_named_by_a_check_that_kills_a_mutant
`mcp-tasks`, which works on every shared store while servers run
    operations/test_cli.py::test_a_cancel_stops_the_work_in_its_server
    test_packaging.py::test_a_page_names_no_extra_that_is_not_there
export MCP_TASKS_STORE=sqlite:///tasks.db
    test_options.py::test_a_command_of_the_readme_has_the_options_that_are_shown
    operations/test_cli.py::test_wrong_usage_and_a_store_that_is_not_there_have_codes_of_their_own
mcp-tasks web # the page above; or mount operations.web.dashboard(store)
    operations/web/test_command.py::test_the_command_serves_the_page_until_it_is_interrupted
    operations/web/test_dashboard.py::test_an_application_with_its_own_authentication_mounts_it
mcp-tasks list --status working --older-than 1h # of all owners; --json for scripts
    operations/test_cli.py::test_list_shows_the_tasks_of_all_owners_the_newest_first
    operations/test_cli.py::test_list_filters_for_scripts
mcp-tasks show 7f3a # times, attempts, worker, questions, history
    operations/test_cli.py::test_show_tells_what_happened_to_a_task
mcp-tasks watch 7f3a # until it ends
    operations/test_cli.py::test_watch_follows_tasks_until_they_have_ended
mcp-tasks cancel --tool fetch --yes # the processes that run the work stop it
    operations/test_cli.py::test_cancelling_many_asks_first
    operations/test_cli.py::test_a_cancel_stops_the_work_in_its_server
mcp-tasks answer 7f3a; mcp-tasks retry 7f3a # asks the open form at the terminal; makes a new task
    operations/test_cli.py::test_a_question_is_answered_at_the_terminal
    operations/test_cli.py::test_a_retried_task_is_a_new_one_that_a_server_with_its_tool_runs
mcp-tasks workers; mcp-tasks stats; mcp-tasks doctor
    operations/test_cli.py::test_workers_and_stats_and_doctor_tell_who_runs_what
Arguments and results are masked unless `--values` is given
    operations/test_cli.py::test_values_are_shown_only_when_asked_for
`python examples/operations.py` is a server to try it on
    test_examples_index.py::test_each_example_is_run_by_the_gate_or_by_a_test
one line, with its id, for each task that ends without a result: at WARNING or ERROR
    core/test_task_log.py::test_work_that_fails_is_one_line
    core/test_endings.py::test_operators_read_one_line_for_a_task_that_did_not_complete
spans and metrics by OpenTelemetry; `Tasks(on_change=…)`: for webhooks
    operations/test_telemetry.py::test_a_run_is_one_span_with_its_questions_and_no_word_of_clients
    operations/test_telemetry.py::test_metrics_count_what_happens
    core/test_change_hook.py::test_changes_come_in_order_and_all_before_the_runtime_is_closed
waits an hour for a person at the page or `mcp-tasks answer`
    mcp_v2/test_inbox.py::test_a_form_waits_for_a_person_where_the_client_cannot_be_asked
    mcp_v2/test_inbox.py::test_a_person_has_a_time_limit
bounds tasks, bytes, questions, polls and streams of an owner, and what runs at once
    mcp_v2/test_wire_rules_limits.py::test_a6_a_task_too_many_is_refused_with_the_limit_and_an_ended_one_makes_room
    core/test_bounds.py::test_arguments_and_results_count_in_bytes
    adapters/test_arguments.py::test_open_questions_of_a_task_are_bounded
    mcp_v2/test_wire_rules_limits.py::test_a6_a_client_that_polls_too_often_is_told_when_to_come_again
    mcp_v2/test_push.py::test_c11_what_the_streams_of_an_owner_listen_to_is_bounded
    mcp_v2/test_wire_rules_limits.py::test_a6_work_beyond_what_may_run_at_once_waits_for_its_turn_and_then_runs
the defaults suit a server of 512 MB
    core/test_work_by_name.py::test_the_default_limits_fit_a_small_server
The docstring of `TaskSettings` has them all
    test_options.py::test_a_setting_is_explained_with_its_default
Work runs while a lifespan of the server is open
    mcp_v2/test_server.py::test_tasks_outlive_their_client_while_another_client_stays
work gets `shutdown_grace` (1 second), then its tasks end `failed`; `rerunnable` ones are handed over
    core/test_shutdown.py::test_work_that_outlives_the_grace_period_is_cancelled_and_its_task_fails_honestly
    mcp_v2/test_reruns.py::test_a_server_that_stops_hands_its_work_over_at_once
    test_readme.py::test_the_grace_of_a_shutdown_is_as_long_as_the_readme_says
A client in the same process, and one over SSE, has a lifespan of its own: put `async with tasks:` around it all
    mcp_v2/test_server.py::test_a_client_in_the_same_process_has_a_lifespan_of_its_own
    mcp_v2/test_server.py::test_tasks_outlive_their_client_while_the_server_runs
A task belongs to the principal of the SDK's authentication (client, issuer, subject)
    mcp_v2/test_owners.py::test_a5_the_task_of_another_principal_is_like_one_that_does_not_exist
    mcp_v2/test_owners.py::test_a5_a_new_token_of_the_same_principal_reaches_the_task
Anyone else gets the answer of an unknown id
    mcp_v2/test_owners.py::test_l10_another_s_task_costs_what_none_costs_and_the_answer_is_the_same_to_the_byte
    mcp_v1/test_http.py::test_a5_a_principal_finds_its_tasks_again_and_nobody_else_does
a task of 2025-11-25 belongs to its session, and otherwise its id is the secret (192 random bits)
    mcp_v1/test_http.py::test_it_holds_with_sessions_that
    mcp_v2/test_owners.py::test_a5_without_authentication_the_id_alone_is_the_key
    core/test_types.py::test_ids_have_192_random_bits_and_never_repeat
such clients share one owner and its limits
    mcp_v2/test_server.py::test_l16_without_authentication_clients_of_2026_share_one_limit
Where something else knows who calls, say so
    mcp_v2/test_principal.py::test_a5_a_task_belongs_to_the_principal_that_the_server_names
    test_readme.py::test_a_block_of_the_readme_runs
`Tasks(store, seal=keys)` encrypts what clients and tools store
    mcp_v2/test_sealing.py::test_a_server_leaves_nothing_to_read_in_its_file
[SECURITY](.github/SECURITY.md) has the threat model
    test_contributing.py::test_every_link_leads_to_a_file
`python3 tests/benchmarks/run.py` compares with a bare server of the same SDK
    test_contributing.py::test_every_program_that_the_readme_runs_is_there
[examples/README.md](examples/README.md) an index of examples
    test_examples_index.py::test_the_index_names_every_example_and_no_other
    test_contributing.py::test_every_link_leads_to_a_file
the tests bring their own Redis and PostgreSQL
    stores/redis/test_laws.py::test_the_store_keeps_the_laws
    stores/test_postgres.py::test_the_store_keeps_the_laws
On a machine with Python 3.10 or newer and pip
    test_packaging.py::test_the_pages_name_the_oldest_python_that_is_allowed
"""

CHANGELOG = """
The default of `Tasks(principal=...)` is `None`, which stands for the principal of the SDK's authentication, as before
    mcp_v2/test_owners.py::test_a5_the_task_of_another_principal_is_like_one_that_does_not_exist
a worker finds the tasks of its own tools at the same cost however many wait for other workers
    stores/redis/test_work.py::test_a_look_costs_the_server_nothing_for_tasks_of_other_tools
Tasks that an earlier version stored are found, too
    stores/redis/test_work.py::test_what_an_earlier_version_stored_is_found
calls that come together share one stream instead of a `tasks/get` each
    mcp_v2/test_request_counts.py::test_calls_that_come_together_share_one_stream_and_need_no_look
so does a call where the last three tasks were still at work when they were first looked at
    mcp_v2/test_listening.py::test_a_task_is_not_looked_at_where_the_last_ones_were_at_work_when_they_were
An answer to a question of a task whose changes are pushed is followed by no `tasks/get`, unless nothing is pushed soon
    adapters/test_watch.py::test_what_this_side_led_to_is_pushed_soon_or_looked_at
a task that a lost worker had fetched and not begun runs elsewhere after `start_grace_ms`
    engines/test_engines.py::test_what_a_lost_worker_of_docket_had_fetched_is_delivered_again
A dispatcher of your own with `start_grace_ms = 0` is offered every task until it takes it
    core/test_dispatch.py::test_no_burst_is_too_large_where_no_task_is_overdue
    core/test_dispatch.py::test_a_task_that_was_refused_once_is_offered_until_it_is_taken_where_none_is_overdue
A short outage of the store at the former deadline of a task whose TTL was extended no longer ends the task
    core/test_bounds.py::test_an_outage_at_the_former_deadline_ends_no_task_whose_ttl_was_extended
A client that leaves while its poll takes over a task of a lost worker no longer delays the task by a lease
    core/test_leases.py::test_a_client_that_leaves_while_its_poll_claims_a_lost_task_does_not_lose_the_task
while it waits for a slot, a worker or its next run has the status message "The task was cancelled"
    core/test_work_queues.py::test_a_cancelled_task_does_not_say_that_it_waits_or_runs
    core/test_dispatch.py::test_a_task_can_be_cancelled_before_and_while_it_runs_elsewhere
    core/test_rerun_policy.py::test_a_task_that_waits_can_be_cancelled
no longer hides the task from other workers until the next sweep
    stores/redis/test_cluster.py::test_a_claim_whose_second_step_is_late_hides_no_task_that_was_put_back_meanwhile
No dispatcher is offered tasks that ended while they were offered before
    core/test_dispatch.py::test_a_task_that_ends_while_it_is_offered_is_offered_no_more
A task that waited for a slot or for a worker says "Running" when its work has run for 0.1 s
    core/test_work_queues.py::test_work_waits_for_the_slots_of_its_queue_and_says_so
The examples with an engine start its broker, too: a Redis or PostgreSQL that is installed, unless a URL names one
    engines/test_examples.py::test_one_command_starts_a_broker_and_two_workers_and_stops_them
    engines/test_examples.py::test_without_a_server_the_example_says_what_to_install
`TaskTaking` finds and claims tasks in one step
    kit/test_memory_backend.py::test_a_store_that_takes_work_keeps_the_laws
a database file that is made can be read and written by its owner alone (mode 0600), and so can its log
    stores/test_sqlite.py::test_a_file_is_made_for_its_owner_alone_and_keeps_the_permissions_it_has
`LeaseLostError` and `SealedError` are imported from `mcp_task_runtime`, as the other errors are
    test_errors.py::test_every_error_is_imported_from_the_package
On Python 3.12 a call with a trace context, or with capabilities of its own, no longer leaves some hundred bytes
    core/test_text.py::test_what_clients_said_is_not_kept_however_much_it_was
    core/test_text.py::test_no_text_is_interned_which_python_3_12_would_never_free
`mcp-tasks answer` asks a field with several choices, and shows the titles of choices
    operations/test_asking.py::test_each_kind_of_field_is_asked_until_it_can_be_read
    operations/test_asking.py::test_choices_are_shown_with_their_titles
A value that cannot be read is asked again where the field may be left out, too
    operations/test_asking.py::test_a_field_that_is_not_required_can_be_left_out
Redis Cluster: no connection is left open where a node did not answer at the start, or the first call was cancelled
    stores/redis/test_links.py::test_a_connection_that_fails_while_a_node_is_asked_is_not_kept
    stores/redis/test_links.py::test_a_connection_is_not_kept_when_the_first_caller_is_cancelled
a worker keeps the tasks that it has claimed when its next claim fails
    stores/test_sealed.py::test_a_worker_keeps_the_tasks_it_has_claimed_when_the_next_claim_fails
says nothing of the store's address when the store is down
    mcp_v2/test_question_page.py::test_a_page_says_that_the_store_is_down_and_not_where_it_is
address that no server made costs no read
    mcp_v2/test_question_page.py::test_an_address_that_the_server_did_not_make_costs_no_read
the kit checks them where a store declares `taking` or `ends`
    kit/test_memory_backend.py::test_a_store_that_takes_work_keeps_the_laws
No thread of the worker waits for a task
    engines/test_loop_jobs.py::test_each_job_runs_once_with_the_variables_of_the_loop
The server sends what comes together from one thread, and with Kombu 5.7 and Redis in one round trip
    engines/test_celery_dispatcher.py::test_messages_that_come_together_are_sent_together
events and `inspect` show it as before
    engines/test_engines.py::test_celery_shows_what_runs_in_its_worker
up to 50 ms after its end
    engines/test_loop_jobs.py::test_an_engine_hears_of_an_end_with_its_next_job_or_soon
The server adds tasks that come together to their docket in one round trip
    engines/test_docket_dispatcher.py::test_tasks_that_come_together_are_added_in_one_round_trip
Redis: a task that runs in a worker costs a third of the processor time
    core/test_taking.py::test_a_task_costs_a_worker_two_calls_and_its_server_one
    stores/redis/test_ends.py::test_a_dispatched_task_costs_its_server_one_round_trip_and_its_worker_few
Workers claim what waits in one step, several tasks at once, instead of racing for each
    core/test_taking.py::test_as_many_tasks_are_taken_as_there_is_room_for
    core/test_taking.py::test_workers_that_look_at_once_run_each_task_once
the server hears of the end without reading the task
    stores/redis/test_ends.py::test_those_who_made_and_claimed_a_task_are_told_of_its_end
Redis and PostgreSQL: a task that waits on a question takes 14 KiB of memory (22 and 23 before)
    stores/redis/test_waiting.py::test_a_watch_is_called_for_what_happened_while_the_connection_was_lost
    stores/test_postgres_watching.py::test_many_watches_cost_one_look_and_own_changes_none
The kit's stories no longer fail a store and a queue of different makers, where a task was deleted with a question open
    kit/test_machine.py::test_a_store_and_a_queue_of_different_makers_and_the_model_agree
A dispatcher gets the tasks of a burst of calls a few at once
    core/test_dispatch.py::test_a_broker_gets_a_burst_of_tasks_a_few_at_once
What a broker did not take while it was down is submitted within seconds of its return
    core/test_dispatch.py::test_a_broker_gets_what_it_did_not_take_as_soon_as_it_is_back
A broker that hangs does not keep a server from putting back the tasks of lost workers
    core/test_dispatch.py::test_work_of_a_lost_worker_is_put_back_while_the_broker_hangs
A runtime with `on_change` that is cancelled on trio is closed at once
    core/test_change_hook.py::test_the_end_waits_for_no_change_that_nothing_delivers_any_more
`mcp` 1.x: the schemas of a tool are compiled once, and not in each call
    mcp_v1/test_schemas.py::test_no_call_of_a_known_tool_checks_a_schema_again
    mcp_v1/test_schemas.py::test_each_call_of_a_low_level_tool_ends_as_the_sdk_ends_it
Clients still hear of each status; those of one connection are told one after the other
    mcp_v1/scenarios.py::b10_each_change_of_status_is_notified_with_the_whole_task
    adapters/test_notifications.py::test_functions_run_one_after_the_other_and_one_that_raises_hurts_none
Tools that ask through the SDK's own context keep 6 to 15 KiB less while they wait
    mcp_v1/test_unwinding.py::test_work_that_asks_through_the_sdks_context_keeps_neither_its_call_nor_its_question
A stdio server on `mcp` 1.x logs no traceback when its event loop ends in good order
    core/test_group.py::test_an_event_loop_that_ends_around_an_open_runtime_logs_nothing
a worker that is stopped while it connects ends
    engines/test_procrastinate.py::test_a_worker_that_is_terminated_while_it_connects_ends
    engines/test_procrastinate.py::test_a_program_that_is_cancelled_while_it_connects_ends
One whose database does not answer when it starts tries again
    engines/test_procrastinate.py::test_it_connects_when_the_database_is_back_that_was_down_at_first
a poll that is answered before the result has arrived no longer loses it
    mcp_v2/test_client_legacy.py::test_a_result_on_its_way_counts_although_the_server_has_forgotten_the_task
warns once and waits, each time longer, instead of looking 50 times a second
    core/test_dispatch.py::test_a_worker_without_keys_waits_and_warns_once_where_all_work_is_sealed
it finds work that is not sealed behind any 1,000 tasks that are
    core/test_dispatch.py::test_sealed_tasks_hide_no_others_from_a_worker_without_keys
with one line: `Tasks().install(server)`, or through the server's own constructor arguments
    mcp_v2/test_server.py::test_constructor_arguments_do_without_install
is cancelled at its next `await`, and ends at its TTL
    mcp_v2/test_server.py::test_cancelling_stops_the_work_and_runs_its_clean_up
    mcp_v2/test_server.py::test_l7_work_is_stopped_at_its_deadline_and_its_end_can_be_fetched_and_then_it_is_gone
The whole extension `io.modelcontextprotocol/tasks` of protocol 2026-07-28
    mcp_v2/test_wire_rules.py::test_every_rule_has_tests_with_its_number
with changes pushed to clients that listen
    mcp_v2/test_push.py::test_c11_a_listener_gets_acknowledgement_snapshot_every_change_and_the_end
the call returns its questions, the work goes on in the background, and the repeated call finds it again
    mcp_v2/test_input_rounds.py::test_every_kind_of_tool_asks_in_rounds_and_side_by_side
    mcp_v2/test_input_rounds.py::test_the_same_retry_has_the_same_result_and_a_retry_without_answers_the_same_questions
Work whose client does not return ends after `TaskSettings.input_ttl_ms`
    mcp_v2/test_input_rounds.py::test_a_client_that_never_returns_ends_the_work
    mcp_v2/test_input_rounds.py::test_the_time_for_a_client_to_return_is_a_setting
`ServerTaskContext.related_tasks()` returns the tasks that a call names
    mcp_v2/test_related_tasks.py::test_the_work_sees_the_tasks_that_the_call_names
those of the same owner alone
    mcp_v2/test_related_tasks.py::test_tasks_of_other_owners_are_left_out
`mask_errors=True` holds for adopted tools, too
    mcp_v2/test_adopt.py::test_mask_errors_holds_for_it_too
    mcp_v1/test_adopt.py::test_mask_errors_holds_for_it_too
costs a client that takes tasks no run of its own
    mcp_v2/test_undeclared_tools.py::test_a_plain_tool_costs_no_run_once_it_has_shown_that_it_is_one
A server that uvicorn or gunicorn runs in several processes warns if its tasks are kept in memory
    adapters/test_host.py::test_several_processes_that_keep_tasks_in_memory_are_warned_of_once
Clients of protocol 2025-11-25 are served on the same endpoint with the same tools
    mcp_v2/test_legacy_http.py::test_both_eras_are_served_on_one_endpoint_and_see_nothing_of_each_other
`mcp_task_runtime.adapters.mcp_v1`, which replaces the SDK's own experiment
    mcp_v1/test_sdk_faults.py::test_it_holds_on_our_server_that
    mcp_v1/test_migration.py::test_each_name_of_the_sdks_experiment_is_in_the_table
`call_tool` returns the result of a task as of any call; or keep the task by its id
    mcp_v2/test_client.py::test_a_call_that_became_a_task_returns_the_result_of_the_task
    mcp_v2/test_client.py::test_a_task_is_resumed_from_its_bare_id_on_another_connection_c14
Changes of any number of tasks are pushed over few streams
    mcp_v2/test_push.py::test_c11_any_number_of_tasks_is_pushed_over_few_streams
all who wait for a task share its questions and its result
    mcp_v2/test_client.py::test_all_who_wait_for_a_task_get_its_result_and_the_user_is_asked_once
Task handles work with servers of 2025-11-25 too
    mcp_v2/test_client_legacy.py::test_a_started_task_returns_what_the_call_would_have_returned_b5
`call_tool` waits, asks, resumes and cancels
    mcp_v1/test_client.py::test_questions_go_to_the_session_s_own_callbacks_b6
    mcp_v1/test_client.py::test_a_cancelled_call_cancels_its_task
    mcp_v1/test_client.py::test_a_task_is_started_resumed_cancelled_and_listed
`elicit(..., timeout=)` and its relatives raise `QuestionTimeoutError` and withdraw the question
    adapters/test_arguments.py::test_a_question_that_is_not_answered_in_time_raises_and_is_withdrawn
`extend(ttl_ms)` lets a live task live longer
    adapters/test_arguments.py::test_extending_lets_a_task_live_longer_within_the_bounds
take a real `ServerSession` of either SDK line
    mcp_v1/test_low_level.py::test_a_context_over_the_sdks_own_session_tells_and_asks_the_client
    mcp_v2/test_server.py::test_a_context_over_the_sdks_own_session_tells_and_asks_the_client
A client that does not read its notifications no longer holds up the work
    adapters/test_notifications.py::test_work_goes_on_while_its_client_does_not_read
records the result of a function, so that a rerun resumes behind it
    core/test_steps.py::test_a_program_killed_at_every_moment_has_each_effect_and_records_each_result_once
steps may run side by side, are retried (`attempts=`, `retry_on=`, `backoff=`), and return JSON values
    core/test_steps.py::test_steps_side_by_side_find_their_results_in_any_order
    core/test_steps.py::test_a_step_that_raises_is_run_again_after_growing_delays
    core/test_steps.py::test_a_result_comes_back_as_its_type_in_each_run
A rerun that takes other steps gets `StepChangedError` before one runs
    core/test_steps.py::test_a_rerun_that_takes_other_steps_is_told_before_one_runs
`task.attempt` says which run it is
    mcp_v2/test_reruns.py::test_a_rerun_resumes_behind_the_steps_that_have_ended
`task.run_again(after=)` asks for it by hand
    mcp_v2/test_server.py::test_work_asks_by_hand_to_run_again_and_hears_whether_it_will
`rerunnable=Rerun(max_attempts=3, backoff=..., on=[...])`: work also runs again when it raises what is named
    core/test_rerun_policy.py::test_work_that_raised_runs_again_after_its_delay_and_its_task_is_working_meanwhile
after a delay that survives a restart and in which the task is `working` and can be cancelled
    core/test_rerun_policy.py::test_a_delay_survives_its_process
    core/test_rerun_policy.py::test_a_task_that_waits_can_be_cancelled
`queue=WorkQueue("reports", concurrency=2, max_queued=100)` bounds the work of a tool or of a group of tools
    core/test_work_queues.py::test_work_waits_for_the_slots_of_its_queue_and_says_so
    core/test_work_queues.py::test_one_more_than_may_wait_is_refused_and_counted_no_more_when_it_ends
begins by its owner's turn, so that no owner starves the others
    core/test_work_queues.py::test_owners_have_turns
A task that waits for a slot or for a worker has the status message "Queued"
    core/test_work_queues.py::test_work_waits_for_the_slots_of_its_queue_and_says_so
    core/test_dispatch.py::test_a_dispatched_task_waits_for_a_worker_and_runs_there
`join=True`, or a function of the arguments that gives a key
    core/test_joining.py::test_without_a_principal_only_a_key_of_the_author_joins
decided in one step in the store, across processes (`TaskJoins`)
    core/test_joining.py::test_many_calls_at_once_make_one_task
    stores/test_sqlite.py::test_the_store_keeps_the_laws
It does so where the queue is full, or its owner is at a limit, too: it makes no task
    core/test_joining.py::test_a_repeated_call_joins_where_the_queue_is_full
    core/test_joining.py::test_a_repeated_call_joins_at_its_owners_limit
A client of 2025-11-25 that only polls is asked over its connection's general stream
    mcp_v1/test_wire_rules.py::test_it_holds_that
    mcp_v2/test_legacy_clients.py::test_it_holds_that
its `statusMessage` says what is asked where the work says nothing
    wire/test_2025_11_25.py::test_b4_a_task_with_its_questions
What the work of a plain call says reaches the client as progress or log messages
    adapters/test_notifications.py::test_what_the_work_of_a_plain_call_says_is_its_progress_and_always_grows
    adapters/test_notifications.py::test_a_client_without_a_token_gets_log_messages_if_it_asked_for_them
a response of another principal answers no question of a 2025-11-25 client: it is dropped on `mcp` 1.x
    mcp_v1/test_http.py::test_l10_a_response_of_another_principal_answers_no_question
on 2.x such clients are not asked over HTTP unless the SDK's own authentication opened their session
    mcp_v2/test_legacy_http.py::test_l10_a_question_fails_where_nothing_checks_who_answers
What the streams of one owner listen to, and the open questions of a task, are bounded
    mcp_v2/test_push.py::test_c11_what_the_streams_of_an_owner_listen_to_is_bounded
    adapters/test_arguments.py::test_open_questions_of_a_task_are_bounded
Slow calls become tasks by themselves (`promote_after`); work may finish elsewhere (`detach`, `complete`, `fail`)
    mcp_v2/test_promotion.py::test_a_slow_call_becomes_a_task_when_its_time_is_over_and_not_before
    mcp_v2/test_server.py::test_a_detached_task_is_ended_by_its_id
Owners from the SDK's authentication, or from a function that knows who calls (`principal`)
    mcp_v2/test_owners.py::test_a5_the_task_of_another_principal_is_like_one_that_does_not_exist
    mcp_v2/test_principal.py::test_a5_a_task_belongs_to_the_principal_that_the_server_names
limits for tasks, work at once, TTLs, answers and polls, each with its own error
    mcp_v2/test_wire_rules_limits.py::test_a6_work_beyond_what_may_run_at_once_waits_for_its_turn_and_then_runs
    mcp_v2/test_wire_rules_limits.py::test_a6_a_ttl_beyond_the_bounds_is_clamped_and_shown_as_stored
    mcp_v2/test_wire_rules_limits.py::test_a6_an_answer_too_large_is_refused_with_the_limit_and_its_question_stays_open
Servers stop promptly: work gets a grace period, listeners see how it ended, and their streams end
    mcp_v2/test_stopping.py::test_who_listens_to_a_task_sees_how_the_shutdown_ended_it_and_the_stream_ends
    mcp_v2/test_transports.py::test_an_http_server_stops_promptly_and_cleanly_in_the_middle_of_tasks
`tasks/get` tells one by the task's age, between 20 ms and 5 s
    core/test_poll_interval.py::test_a_poll_is_told_by_the_age_of_the_task
A task that waits on a question takes 10 KiB of memory (17 before), on SQLite 14 (20)
    mcp_v2/test_unwinding.py::test_a_task_that_waits_on_a_question_takes_little_memory
a store with the ability `TaskWatching` calls back when a task changes, instead of being waited in
    core/test_followers.py::test_a_store_that_calls_back_is_not_waited_in
The test kit checks what a store declares: `leases`, `fences`, `questions`, `journal`, `search`
    kit/test_memory_backend.py::test_a_store_without_an_ability_is_found_out
its messages quote the law that is broken
    kit/test_checks_kill_mutants.py::test_each_fault_is_found_by_the_checks_made_for_it
`mcp_task_runtime.stores` exports what authors of stores need: cursors, and checks of values
    stores/test_cursor.py::test_the_package_of_stores_exports_what_authors_need
Tasks and their questions in memory, SQLite, Redis or PostgreSQL
    kit/test_memory_backend.py::test_the_store_keeps_the_law
    stores/test_sqlite.py::test_store_and_queue_keep_the_laws_together
    stores/redis/test_laws.py::test_store_and_queue_keep_the_laws_together
    stores/test_postgres.py::test_store_and_queue_keep_the_laws_together
the work of a lost process is seen, ended or run again with the answers it had
    core/test_leases.py::test_the_task_of_a_silent_process_ends_failed_and_says_that_its_worker_was_lost
    core/test_leases.py::test_a_question_that_a_rerun_asks_again_gets_its_answer_and_an_open_one_stays_open
A worker that was paused beyond its lease and continues can change nothing
    faults/test_faults.py::test_tasks_survive_the_faults_of_servers_and_workers
`update_status`, the asking methods, `complete` and `fail` raise `LeaseLostError`, and its work is stopped
    core/test_lost_runs.py::test_a_run_that_has_lost_its_lease_changes_nothing_and_is_stopped_at_its_next_write
`from mcp_task_runtime.server import Tasks` gives the class of the SDK line that is installed
    test_server_module.py::test_it_gives_the_class_of_the_installed_line
The same options on both lines of the SDK and on `tool`, `task` and `run`
    test_options.py::test_each_method_that_makes_tasks_takes_each_option
An exception of a tool reads to its client exactly as in a plain call on the same SDK
    mcp_v2/test_like_plain_tools.py::test_a_tool_that_runs_as_a_task_has_the_schemas_results_and_errors_of_a_plain_one
    mcp_v1/test_differential.py::test_a_call_with_tasks_answers_as_the_sdk_alone
PostgreSQL: lease and expiry times are the server's, so processes whose clocks disagree end no work
    stores/test_postgres_outages.py::test_a_process_whose_clock_is_wrong_ends_no_work_and_stamps_no_wrong_time
a server that goes away for a moment is waited out (`timeout`), and the log says so once
    stores/test_postgres_outages.py::test_a_server_that_is_away_for_a_moment_is_waited_out_and_the_log_says_so_once
Schemas of earlier versions are migrated in place
    stores/test_postgres.py::test_the_stored_form_of_version_1_is_brought_to_version_3_once_however_many_start
    stores/test_postgres.py::test_the_stored_form_of_version_2_is_brought_to_version_3
Tools that exist run as tasks without a change of their code, on both lines and under both protocols
    mcp_v2/test_adopt.py::test_a_tool_runs_as_a_task_whenever_it_is_registered
    mcp_v1/test_adopt.py::test_a_tool_runs_as_a_task_whenever_it_is_registered
`advertise=False` of `tool`, `task` and `adopt` accepts task calls without showing it in `tools/list`
    mcp_v2/test_adopt.py::test_a_mode_that_is_not_advertised_is_accepted_all_the_same
shows what fourteen real clients can do
    clients/test_clients.py::test_the_readme_has_a_row_for_each_client
    clients/test_clients.py::test_every_cell_works_or_names_the_limit_of_the_client
how agents of others call task tools
    clients/test_agents.py::test_the_example_for_an_agent_gets_the_result_of_a_task_tool
A server of the package `fastmcp` 4 gets tasks by the same line; an older one is refused with what to do
    fastmcp/test_fastmcp.py::test_its_tools_run_as_tasks_and_ask_through_them
    mcp_v1/test_low_level.py::test_a_server_of_another_package_is_refused_with_what_to_do
Work that runs again has the SDK's context: it asks and reports through the task, its request id is the task's id
    mcp_v2/test_reruns.py::test_an_adopted_tool_runs_again_and_asks_with_its_own_context
    mcp_v2/test_reruns.py::test_a_rerun_has_a_context_without_a_request
`blocking=True` runs a tool that blocks in a thread with an event loop of its own
    mcp_v2/test_server.py::test_a_blocking_tool_holds_up_no_other_request
    adapters/test_own_loop.py::test_work_that_blocks_holds_up_only_itself
`ServerTaskContext` may be imported under `TYPE_CHECKING`
    adapters/test_functions.py::test_the_context_may_be_imported_for_type_checkers_alone
generators as tools, unresolved annotations and names that only one decorator has are refused or warned of
    adapters/test_functions.py::test_a_generator_is_refused_with_what_to_do_instead
    adapters/test_functions.py::test_a_context_parameter_that_would_not_be_filled_is_refused
    mcp_v2/test_server.py::test_a_name_that_the_sdks_decorator_alone_was_given_works_and_is_warned_of
Work that runs as a task keeps nothing of the request it came by
    mcp_v2/test_unwinding.py::test_work_that_waits_keeps_nothing_of_its_request
    mcp_v1/test_unwinding.py::test_work_that_waits_keeps_nothing_of_its_call
`ctx.elicit`, `ctx.report_progress` and their relatives of the SDK work in tools that run as tasks, on both lines
    mcp_v2/test_unwinding.py::test_the_sdks_own_context_asks_and_reports_through_the_task
    mcp_v1/test_unwinding.py::test_the_sdks_own_context_asks_and_reports_through_the_task
Redis: tasks and leases go by the server's time, so a process whose clock is wrong ends no work
    stores/redis/test_time.py::test_a_wrong_clock_ends_no_work
an outage of up to `timeout` seconds (5 by default) is waited out and logged once
    stores/redis/test_trouble.py::test_a_server_that_is_away_for_a_moment_is_waited_for
    stores/test_url.py::test_an_outage_is_waited_out_for_five_seconds_unless_told_otherwise
opening a store that cannot be reached fails with one line that names its address
    stores/redis/test_trouble.py::test_a_server_that_cannot_be_used_at_the_start_is_one_line_that_names_it
a server that may evict tasks is warned of; damaged values are `StoreError`s of their task alone
    stores/redis/test_trouble.py::test_a_server_that_may_evict_is_warned_of_once
    stores/redis/test_form.py::test_a_damaged_field_is_a_store_error_and_hurts_that_task_alone
SQLite: all processes share one time that no wall clock moves, and leases survive sleep but no reboot
    stores/test_sqlite_faults.py::test_processes_whose_wall_clocks_disagree_take_nothing_from_each_other
    stores/test_sqlite_faults.py::test_no_lease_runs_out_while_the_machine_sleeps_but_time_goes_on
    stores/test_sqlite_faults.py::test_leases_lapse_with_a_reboot_however_soon_it_is_and_whatever_the_clock_says
a locked or unavailable file is waited out (`timeout`, 5 seconds by default), logged once and named in the error
    stores/test_sqlite_engine.py::test_a_lock_that_is_not_released_in_time_is_raised_and_nothing_is_lost
    stores/test_sqlite_engine.py::test_an_outage_that_outlasts_the_timeout_is_raised_with_the_files_name
    stores/test_url.py::test_an_outage_is_waited_out_for_five_seconds_unless_told_otherwise
a deleted or replaced file is refused; damaged rows hurt their own task alone
    stores/test_sqlite_engine.py::test_a_replaced_file_is_refused_until_the_first_is_back_and_logged_once
    stores/test_sqlite_faults.py::test_a_damaged_task_is_a_store_error_and_hurts_no_other
Files of earlier versions are migrated in place
    stores/test_sqlite.py::test_a_file_of_version_1_is_read_and_migrated
    stores/test_sqlite.py::test_a_file_of_version_2_is_read_and_migrated
`open_store` refuses unknown parameters by name, and takes `timeout` for every durable store
    stores/test_url.py::test_an_unknown_parameter_is_refused_by_its_name
    stores/test_url.py::test_known_parameters_are_taken
No task hurts another: a result nested too deeply, a stray `CancelledError`
    core/test_isolation.py::test_work_that_ends_badly_fails_its_task_alone
    core/test_isolation.py::test_what_a_foreign_store_raises_for_one_task_touches_no_other
An outcome waits, with its lease, until the store takes it or its task has expired
    core/test_work_by_name.py::test_an_outcome_waits_with_its_lease_until_the_store_takes_it
    core/test_endings.py::test_an_outcome_that_waits_is_counted_and_dropped_loudly_when_its_task_has_expired
after an outage no process takes over work of another that lives
    core/test_work_by_name.py::test_no_live_process_loses_its_work_to_an_outage
rerunnable work that an outage stopped runs again, `max_attempts` (3) times at most
    core/test_work_by_name.py::test_work_that_an_outage_stops_counts_as_lost_where_it_may_run_again
    core/test_work_by_name.py::test_three_attempts_are_the_default
Bounds for stored tasks and their bytes (`max_stored_tasks_per_owner`, `max_stored_bytes_per_owner`)
    core/test_bounds.py::test_ended_tasks_count_until_they_expire_and_other_owners_have_room
    core/test_bounds.py::test_arguments_and_results_count_in_bytes
the default of `max_tasks_per_owner` is 5,000
    test_options.py::test_a_setting_is_explained_with_its_default
writes exactly one line for each task that ends without a result, with its full id, its tool and the reason
    core/test_task_log.py::test_work_that_fails_is_one_line
    core/test_task_log.py::test_a_task_that_is_ended_from_outside_is_one_line
at ERROR with the traceback where its work raised an unexpected exception, otherwise at WARNING, for cancelled ones too
    core/test_task_log.py::test_work_that_fails_is_one_line
    core/test_task_log.py::test_a_task_that_is_ended_from_outside_is_one_line
An attempt that will be repeated is one WARNING. No line below WARNING has an id
    mcp_v2/test_task_log.py::test_a_run_that_will_be_repeated_is_one_warning_and_the_last_one_an_error
    core/test_audit.py::test_no_id_is_in_a_log_at_info_level
Tools run in other processes with `Tasks(dispatcher=StoreDispatcher())`
    mcp_v2/test_worker_processes.py::test_no_task_is_lost_when_a_worker_is_killed_and_another_one_paused
or `await tasks.work()`, is a worker on any shared store and both lines
    mcp_v1/test_workers.py::test_the_tools_of_a_server_run_in_a_worker_with_the_state_of_its_lifespan
    mcp_v2/test_workers.py::test_the_tool_of_a_call_runs_in_the_worker_and_asks_its_client
any number of them share the tasks, which the store wakes them for
    core/test_dispatch.py::test_workers_take_no_more_than_they_have_room_for
A worker that is stopped or lost gives rerunnable work to the others
    mcp_v2/test_worker_processes.py::test_a_worker_that_is_terminated_gives_its_work_to_another_one_at_once
On `mcp` 1.x, work that runs by its tool's name has the state of a lifespan
    mcp_v1/test_workers.py::test_the_tools_of_a_server_run_in_a_worker_with_the_state_of_its_lifespan
sees the principal, declared capabilities, protocol and trace context of its caller (`task.caller`)
    mcp_v2/test_callers.py::test_a_worker_sees_the_caller_and_none_of_its_secrets
    mcp_v2/test_callers.py::test_a_rerun_sees_its_own_caller_whoever_polls
sealed with keys that can be rotated. A task whose credentials cannot be opened fails
    mcp_v2/test_callers.py::test_a_worker_sees_the_credentials_that_are_kept_also_with_a_rotated_key
    mcp_v2/test_callers.py::test_credentials_that_cannot_be_opened_fail_the_task_before_its_work
`DocketDispatcher`, `ProcrastinateDispatcher` and `CeleryDispatcher` have the workers of an engine that you run already
    engines/test_engines.py::test_no_task_is_lost_with_a_worker_or_with_the_broker
each is an extra. A broker that is down or loses all costs no task
    test_packaging.py::test_a_page_names_no_extra_that_is_not_there
    core/test_dispatch.py::test_a_broker_that_loses_all_costs_time_and_no_task
    core/test_dispatch.py::test_a_broker_gets_what_it_did_not_take_as_soon_as_it_is_back
`TaskDispatcher`: an interface for any engine that carries a task's id to a worker
    core/test_dispatch.py::test_an_engine_gets_the_task_with_the_number_of_its_run
operators list, show, watch, cancel, answer and prune tasks of all owners on every shared store
    operations/test_cli.py::test_list_shows_the_tasks_of_all_owners_the_newest_first
    operations/test_cli.py::test_prune_deletes_ended_tasks_alone
`mcp_task_runtime.operations.TaskInspector` does the same from Python
    mcp_v2/test_inbox.py::test_a_form_waits_for_a_person_where_the_client_cannot_be_asked
    operations/test_web_stores.py::test_an_operator_finds_follows_answers_and_retries
An approval inbox: with `Tasks(inbox=seconds)` a form of a task whose client cannot be asked waits for a person
    mcp_v2/test_inbox.py::test_a_form_waits_for_a_person_where_the_client_cannot_be_asked
    mcp_v2/test_inbox.py::test_without_an_inbox_and_for_a_model_it_is_an_error
It finds, follows, cancels and retries tasks, and answers what they ask by a form; shows workers and charts
    operations/test_web_stores.py::test_an_operator_finds_follows_answers_and_retries
    operations/web/test_dashboard.py::test_workers_and_statistics_show_who_runs_what
It is for its own machine alone unless there is a token, or the application's own authentication
    operations/web/test_dashboard.py::test_a_page_is_for_its_own_machine_alone_unless_told_otherwise
    operations/web/test_dashboard.py::test_a_token_is_asked_for
a new task from the request of one that has ended; a server with its tool runs it
    operations/test_cli.py::test_a_retried_task_is_a_new_one_that_a_server_with_its_tool_runs
A task that waits for its first worker longer than its lease says is run by any server that has its tool
    core/test_work_by_name.py::test_a_task_that_waits_for_its_first_worker_is_taken_once_that_is_overdue_and_by_who_has_its_work
each new status that the process gives a task, for webhooks and chats; isolated, in order
    core/test_change_hook.py::test_changes_come_in_order_and_all_before_the_runtime_is_closed
    core/test_change_hook.py::test_a_callback_that_raises_keeps_no_other_change_from_coming
an object that hears of tasks, runs of work, questions, leases and calls of the store
    core/test_observer.py::test_the_life_of_a_task_is_reported_in_order
    core/test_observer.py::test_calls_of_the_store_are_reported_and_refusals_are_no_failures
A task keeps the trace context of its call, so each run of its work is linked to it, in any process
    operations/test_telemetry.py::test_a_worker_in_another_process_and_a_rerun_are_linked_to_the_same_call
`mcp-tasks doctor` shows the versions of server and schema, and what endangers tasks
    operations/test_cli.py::test_workers_and_stats_and_doctor_tell_who_runs_what
    stores/test_redis_findings.py::test_each_setting_that_endangers_tasks_is_found
eviction and missing persistence on Redis, `fsync` or `synchronous_commit` off on PostgreSQL
    stores/test_redis_findings.py::test_each_setting_that_endangers_tasks_is_found
    stores/test_postgres.py::test_a_server_that_may_lose_what_it_acknowledged_is_found
`RedisTaskStore.statistics()`
    stores/redis/test_trouble.py::test_the_figures_of_a_store_follow_what_it_does
`create_task` takes a `NewTask` or its fields
    core/test_types.py::test_a_new_task_is_given_whole_or_by_its_fields_and_not_both
A completed task no longer keeps the last status message of its work
    mcp_v2/test_push.py::test_c11_a_listener_gets_acknowledgement_snapshot_every_change_and_the_end
`TaskRuntime.register`, `submit`, `execute(task_id)` and `statistics()`; `runtime.followers` follows many tasks cheaply
    core/test_work_by_name.py::test_execute_claims_runs_and_finishes_a_task_that_waits_for_a_worker
    core/test_followers.py::test_two_thousand_readers_of_one_task_cost_one_wait_and_let_others_run_while_they_wake
Every way to end a task releases its open questions, `TaskContext.complete` and `task_execution` included
    core/test_endings.py::test_each_way_to_end_a_task_releases_its_askers
the laws of stores, their leases and queues as checks for backends of your own
    kit/test_memory_backend.py::test_the_whole_contract_is_one_call_that_reports_what_it_left_out
A server whose store cannot be reached fails at its start, with one line that names the address
    mcp_v2/test_start.py::test_a_server_whose_store_cannot_be_reached_fails_at_its_start
    mcp_v1/test_http.py::test_a_server_whose_store_cannot_be_reached_fails_at_its_start
requests in an outage add nothing to the log. A store of your own takes part with `TaskConnecting.connect`
    mcp_v2/test_start.py::test_requests_in_an_outage_add_nothing_to_the_log
    stores/test_url.py::test_a_runtime_over_a_store_that_cannot_be_reached_fails_at_its_start
`mcp` 1.x: `FastMCP.streamable_http_app` holds the runtime open as `async with tasks:` does
    mcp_v1/test_http.py::test_the_app_of_a_server_holds_the_runtime_open
With `Server.run(stateless=True)` tasks outlive their connection, and `tasks/list` is served only where it is declared
    mcp_v1/test_low_level.py::test_l10_without_sessions_a_task_outlives_its_connection_and_its_id_is_the_secret
    mcp_v1/test_low_level.py::test_b1_without_sessions_what_is_not_declared_is_not_served
may take 16 MiB (`TaskSettings.max_payload_bytes`); a larger one is refused
    core/test_bounds.py::test_arguments_that_are_too_large_are_refused_and_take_no_room
    core/test_bounds.py::test_work_whose_result_or_error_is_too_large_ends_with_a_clear_error
    test_options.py::test_a_setting_is_explained_with_its_default
A wait for a message of a task that has ended ends at once on every store
    kit/test_checks_kill_mutants.py::test_each_fault_is_found_by_the_checks_made_for_it
The kit checks `TaskWork`, `TaskWatching`, `TaskDiagnosis` and `TaskQuotas`, where a store declares them
    kit/test_memory_backend.py::test_a_store_without_an_ability_is_found_out
`TaskSettings.max_tasks_per_owner` holds across all processes that share a store
    core/test_shared_limits.py::test_an_owner_has_one_limit_in_all_processes
`Tasks(seal=keys)` seals everything that clients and tools put into any store
    stores/test_sealed.py::test_no_secret_is_in_the_backend
Keys rotate, old tasks are read as they are, and each value is bound to its task and field
    stores/test_sealed.py::test_keys_rotate
    stores/test_sealed.py::test_plain_tasks_of_before_are_read_and_go_on
    stores/test_sealed.py::test_no_value_opens_in_another_task_or_field
a missing key is `SealedError`. `mcp-tasks` takes the keys from MCP_TASKS_SEAL_KEYS
    stores/test_sealed.py::test_a_task_whose_key_is_missing_fails_alone
    operations/test_sealed_tasks.py::test_operators_read_with_the_keys_and_see_what_is_plain_without
the new ability `TaskQuotas`, which all bundled stores have, decides it in the step that creates a task
    core/test_shared_limits.py::test_an_owner_has_one_limit_in_all_processes
    stores/test_sqlite.py::test_the_store_keeps_the_laws
`mcp-tasks` and the web page show `completed (error)`, and filter by it (`--errors`)
    operations/test_cli.py::test_a_result_that_is_an_error_is_shown_found_and_counted
    operations/web/test_dashboard.py::test_a_result_that_is_an_error_is_shown_found_and_counted
`TaskFilter.errors_only` finds tasks that completed with a result whose `isError` is true
    operations/test_cli.py::test_a_result_that_is_an_error_is_shown_found_and_counted
    operations/web/test_dashboard.py::test_a_result_that_is_an_error_is_shown_found_and_counted
addresses gets that of a page for the question alone, which needs no sign-in and ends with the question
    mcp_v2/test_question_page.py::test_a_page_needs_no_sign_in_and_opens_nothing_else
    mcp_v2/test_question_page.py::test_an_answer_of_an_operator_closes_the_question_of_the_client
`dashboard(..., inbox_secret=...)`, or MCP_TASKS_INBOX_SECRET for `mcp-tasks web`, serves it
    mcp_v2/test_question_page.py::test_a_client_that_opens_addresses_gets_that_of_a_page_for_the_question
    operations/web/test_command.py::test_the_command_serves_the_pages_of_an_inbox
says how many tasks wait for a worker, and since when, and how many wait for a slot
    operations/test_cli.py::test_workers_and_stats_and_doctor_tell_who_runs_what
    operations/test_telemetry.py::test_what_waits_for_a_worker_is_a_gauge_of_the_whole_store
`mcp-tasks list --all` looks at all tasks where few match
    operations/test_cli.py::test_a_list_says_where_it_stopped_looking
a tool that exists and blocks runs in a thread with an event loop of its own
    mcp_v2/test_adopt.py::test_one_that_blocks_runs_in_a_thread_and_its_context_reaches_the_client_from_there
    mcp_v1/test_adopt.py::test_one_that_blocks_runs_in_a_thread_and_its_context_reaches_the_client_from_there
its SDK context asks, reports progress and logs from there
    mcp_v1/test_adopt.py::test_one_that_blocks_runs_in_a_thread_and_its_context_reaches_the_client_from_there
get the log messages of existing tools in each round, and progress also where another process took the round
    mcp_v2/test_input_rounds.py::test_what_an_existing_tool_says_after_a_question_goes_to_the_request_that_waits_then
    mcp_v2/test_input_rounds.py::test_a_request_in_another_process_hears_how_far_the_work_is
The SDK's client in process hears `report_progress` of plain calls
    mcp_v2/test_input_rounds.py::test_the_sdks_client_in_process_hears_of_every_round_without_a_token
A store compares the owner of a task before it reads anything else (`TaskOwners`, which all bundled stores have)
    stores/test_owned.py::test_a_task_is_found_for_its_owner_alone_with_its_open_questions
a task of another owner that is large or damaged is answered exactly as an unknown one
    stores/test_owned.py::test_a_damaged_task_of_another_owner_is_an_unknown_one_at_every_door
    stores/test_sqlite.py::test_a_foreign_task_takes_no_longer_to_find_than_an_unknown_one
a page of `TaskSearch.search_tasks` looks at a bounded number of them
    stores/test_search_bounds.py::test_a_page_ends_where_it_has_looked_at_enough_and_the_next_goes_on
where a text is looked for, it may be short or empty and yet have a cursor
    stores/test_search_bounds.py::test_a_page_ends_where_it_has_looked_at_enough_and_the_next_goes_on
    stores/test_search_bounds.py::test_nothing_is_left_out_where_no_text_is_looked_for
PostgreSQL counts up to a bound, which `TaskCounts.counted_up_to` says
    stores/test_postgres.py::test_counting_goes_up_to_a_bound_and_says_so
`mcp-tasks workers` and the page of workers read the 2,000 oldest live tasks
    operations/test_cli.py::test_workers_are_those_of_the_2000_oldest_live_tasks
gives its work back without using up one of `max_attempts`; `Lease.handovers` counts those runs
    core/test_dispatch.py::test_work_that_is_handed_over_again_and_again_uses_up_no_attempt
is taken out of docket and procrastinate, and void for the workers of Celery, where it still waits there
    engines/test_engines.py::test_a_cancelled_task_is_taken_out_of_the_engine
The docstring of `mcp_task_runtime.engines` has a recipe for DBOS
    engines/test_dbos.py::test_the_recipe_runs_tasks_in_a_worker_of_dbos
A worker that serves few tools looks for their tasks alone, however many wait for other workers
    core/test_dispatch.py::test_a_worker_runs_the_tools_that_it_is_for
`mcp-tasks watch` without an ID shows each change when the store tells of it
    operations/test_cli.py::test_watch_without_an_id_shows_changes_as_the_store_tells_them
is a `StoreError` to those who ask for the task, and ends no connection
    core/test_isolation.py::test_what_a_foreign_store_raises_to_a_request_is_an_error_of_the_store_whatever_its_class
that a plain call raises with text that no transport can carry reaches its client as from a task
    mcp_v2/test_server.py::test_a_protocol_error_that_no_transport_can_send_is_the_same_in_a_plain_call_and_in_a_task
    mcp_v1/test_low_level.py::test_a_protocol_error_that_no_transport_can_send_is_the_same_in_a_plain_call_and_in_a_task
"""

SECURITY = """
**A client** can call tools, read, answer, cancel and list its own tasks
    mcp_v1/test_http.py::test_a5_a_principal_finds_its_tasks_again_and_nobody_else_does
Malformed input is refused with an error that names it; nothing changes
    mcp_v2/test_fuzz.py::test_params_of_any_shape_bring_an_answer_or_a_client_error
    mcp_v2/test_fuzz.py::test_headers_of_any_shape_bring_an_answer_or_a_client_error
    wire/test_answers.py::test_a_refusal_never_repeats_what_the_client_sent
`TaskSettings` bounds its tasks, their bytes, its polls, answers and streams
    mcp_v2/test_wire_rules_limits.py::test_a6_of_many_calls_at_once_no_more_than_the_limit_become_tasks
    core/test_bounds.py::test_arguments_and_results_count_in_bytes
    mcp_v2/test_wire_rules_limits.py::test_a6_a_client_that_polls_too_often_is_told_when_to_come_again
    mcp_v2/test_wire_rules_limits.py::test_a6_an_answer_too_large_is_refused_with_the_limit_and_its_question_stays_open
    mcp_v2/test_push.py::test_c11_what_the_streams_of_an_owner_listen_to_is_bounded
It cannot run code, choose keys or tables, or reach a store's other data
    stores/redis/test_keys.py::test_nothing_from_a_client_gets_into_names_unescaped
    stores/test_doors.py::test_no_value_at_any_door_touches_another_task
An id that belongs to another owner gets the answer of an unknown id, in every method
    mcp_v2/test_owners.py::test_a5_the_task_of_another_principal_is_like_one_that_does_not_exist
    mcp_v2/test_owners.py::test_l10_another_s_task_costs_what_none_costs_and_the_answer_is_the_same_to_the_byte
    mcp_v1/test_http.py::test_a5_a_principal_finds_its_tasks_again_and_nobody_else_does
With authentication, a task belongs to the authenticated principal
    mcp_v2/test_owners.py::test_a5_a_new_token_of_the_same_principal_reaches_the_task
it belongs to the connection where the transport has one, and otherwise its id is the secret: 192 random bits
    mcp_v1/test_http.py::test_it_holds_with_sessions_that
    mcp_v2/test_owners.py::test_a5_without_authentication_the_id_alone_is_the_key
    core/test_types.py::test_ids_have_192_random_bits_and_never_repeat
Without authentication over stateless HTTP, anyone who learns a task id can use that task
    mcp_v2/test_owners.py::test_a5_without_authentication_the_id_alone_is_the_key
    mcp_v2/test_legacy_http.py::test_it_holds_without_sessions_that
the library logs them at WARNING and ERROR alone, for tasks that end without a result
    core/test_audit.py::test_no_id_is_in_a_log_at_info_level
    core/test_task_log.py::test_work_that_fails_is_one_line
Clients behind one principal share their tasks and limits
    mcp_v2/test_owners.py::test_a5_a_new_token_of_the_same_principal_reaches_the_task
    mcp_v2/test_owners.py::test_a6_the_tasks_of_one_principal_leave_room_to_the_others
what one task's work raises, returns or leaves behind never ends another task or the server
    core/test_isolation.py::test_work_that_ends_badly_fails_its_task_alone
    mcp_v2/test_like_plain_tools.py::test_work_that_exits_ends_its_task_and_not_the_server
Exceptions reach a client as the SDK's own plain call would show them; `mask_errors=True` hides more
    mcp_v2/test_like_plain_tools.py::test_a_tool_that_runs_as_a_task_has_the_schemas_results_and_errors_of_a_plain_one
    mcp_v2/test_like_plain_tools.py::test_the_text_of_an_unexpected_exception_stays_in_the_server_on_demand
**A store** holds arguments, results, questions and answers in plain text
    stores/test_sealed.py::test_no_secret_is_in_the_backend
A SQLite file is made for its owner alone
    stores/test_sqlite.py::test_a_file_is_made_for_its_owner_alone_and_keeps_the_permissions_it_has
Damaged data hurts the task it belongs to
    stores/test_sqlite_faults.py::test_a_damaged_task_is_a_store_error_and_hurts_no_other
    stores/redis/test_form.py::test_a_damaged_field_is_a_store_error_and_hurts_that_task_alone
    stores/test_postgres_values.py::test_a_damaged_task_is_a_store_error_and_left_out_of_lists_with_one_line
Passwords in store URLs are in no error and no log
    stores/test_url.py::test_the_error_of_a_url_that_cannot_be_read_shows_no_password
    stores/test_url.py::test_a_missing_driver_says_what_to_install_and_shows_no_password
    mcp_v2/test_start.py::test_the_address_of_a_server_is_named_and_no_password
    stores/redis/test_trouble.py::test_a_server_that_cannot_be_used_at_the_start_is_one_line_that_names_it
steps and owners are sealed (AES-256-GCM, bound to task and field); ids, status, times and names of tools stay plain
    stores/test_sealed.py::test_no_secret_is_in_the_backend
    stores/test_sealed.py::test_no_value_opens_in_another_task_or_field
    stores/test_sealed.py::test_sealed_values_are_those_of_aes_256_gcm_and_the_rest_is_plain
Who can write to the store can then still delete a task, undo a change of it, or put a value without a seal
    stores/test_sealed.py::test_plain_tasks_of_before_are_read_and_go_on
**An operator** with access to the store can see and end every task
    operations/test_cli.py::test_list_shows_the_tasks_of_all_owners_the_newest_first
    operations/test_cli.py::test_cancel_ends_tasks_by_id_and_says_which_it_could_not
The web page shows all owners' tasks, so it is for its own machine alone, unless there is a token
    operations/web/test_dashboard.py::test_the_list_shows_the_tasks_of_all_owners_the_newest_first
    operations/web/test_dashboard.py::test_a_page_is_for_its_own_machine_alone_unless_told_otherwise
    operations/web/test_command.py::test_wrong_usage_is_refused_before_anything_is_served
or the application's own authentication in front of it
    operations/web/test_dashboard.py::test_an_application_with_its_own_authentication_mounts_it
Its forms are bound to a cookie and the page's own origin, no script or style of others runs
    operations/web/test_dashboard.py::test_a_form_without_its_token_or_from_elsewhere_is_refused
    operations/web/test_dashboard.py::test_every_page_forbids_what_it_does_not_need
what clients wrote is shown as text
    operations/web/test_dashboard.py::test_what_a_client_put_into_a_task_is_text
    operations/web/test_browser.py::test_no_script_of_a_client_runs
its principal, capabilities and trace context travel in the store
    mcp_v2/test_callers.py::test_a_worker_sees_the_caller_and_none_of_its_secrets
A token or header travels only where `Tasks(credentials=…)` asks for it, sealed with a key that you rotate
    mcp_v2/test_callers.py::test_without_token_and_headers_nothing_is_kept
    mcp_v2/test_callers.py::test_a_worker_sees_the_credentials_that_are_kept_also_with_a_rotated_key
what cannot be opened is not used
    mcp_v2/test_callers.py::test_credentials_that_cannot_be_opened_fail_the_task_before_its_work
"""

CONTRIBUTING = """
python -m pip install -e ".[mcp]" --group dev
    test_contributing.py::test_the_commands_of_the_page_for_contributors_name_what_is_there
    test_packaging.py::test_a_page_names_no_extra_that_is_not_there
python -m pip install "pip>=25.1" # the first one that knows --group
    test_contributing.py::test_the_pip_that_knows_groups_is_the_one_that_the_tests_install
it runs `tests/core`, `tests/wire`, `tests/adapters` and `tests/stores/test_sqlite.py`
    test_contributing.py::test_what_runs_without_servers_imports_nothing_of_them
It runs a whole suite in several processes; `-n 0` runs it in one, for a debugger
    test_contributing.py::test_a_suite_runs_in_several_processes_unless_told_otherwise
Some suites run when they are named
    test_contributing.py::test_the_suites_that_run_when_they_are_named_are_those_of_the_page
`.ci/run` is the gate. It runs one step after the other, and stops at the first that fails
    test_contributing.py::test_the_steps_of_the_gate_are_those_of_the_page
`tests/run.py` is less than 200 lines
    test_contributing.py::test_the_program_that_runs_the_tests_is_as_short_as_the_page_says
| step | minutes |
    test_contributing.py::test_the_steps_of_the_gate_are_those_of_the_page
| folder | what belongs there |
    test_contributing.py::test_the_map_has_every_folder_of_the_package_and_each_has_a_docstring
`pre-commit install` runs lint and types before each commit
    test_contributing.py::test_the_lint_tools_of_the_hooks_are_those_of_the_lint_group
tasks, their laws, the runtime. Imports nothing of ours but `errors`; knows no SDK, driver or wire method
    test_import_law.py::test_module_imports_only_what_its_layer_may
dictionaries of a protocol to values of the core, and back. No I/O
    test_import_law.py::test_module_imports_only_what_its_layer_may
The docstring of each package says what belongs there
    test_contributing.py::test_the_map_has_every_folder_of_the_package_and_each_has_a_docstring
`tests/test_import_law.py` holds the import law
    test_import_law.py::test_a_breach_is_found
The laws L1 to L18 stand in the docstring of `mcp_task_runtime.core`
    core/test_laws.py::test_the_docstring_of_core_states_each_law_in_the_words_of_the_mapping
Add it to `TaskRecord` in `core/types.py`, carry it in `core/transitions.py`
    test_contributing.py::test_every_path_that_a_page_names_is_there
Older stored forms must be read: add a test with the old form
    stores/test_sqlite.py::test_a_file_of_version_2_is_read_and_migrated
    stores/redis/test_form.py::test_what_version_1_stored_is_read_changed_and_found
    stores/test_postgres.py::test_the_stored_form_of_version_2_is_brought_to_version_3
`mcp_task_runtime.testing.check_task_store`. `examples/custom_store.py` is one to begin with
    kit/test_memory_backend.py::test_the_store_keeps_the_law
    test_contributing.py::test_every_path_that_a_page_names_is_there
Each check of the kit has a mutant in `tests/kit` that it kills
    kit/test_checks_kill_mutants.py::test_each_check_of_an_unconditional_law_or_of_an_ability_kills_a_mutant
    kit/test_runtime_mutants.py::test_each_check_and_each_fault_of_runtime_wire_and_adapter_has_a_mutant
Time comes from a fake clock, concurrency from drivers that step through interleavings and cancel at every checkpoint
    kit/test_fake_clock.py::test_time_moves_only_when_told
    kit/test_interleavings.py::test_every_order_of_the_awaits_is_run_once
    kit/test_canceller.py::test_an_operation_is_cancelled_at_each_of_its_awaits
`tests/test_claims.py` names the tests of each sentence of the README, the changelog and these pages
    test_claims.py::test_the_pages_say_what_is_claimed
Every async test runs on asyncio and trio
    test_contributing.py::test_async_tests_run_on_both_event_loops
Docstrings on public names say meaning, units, errors
    test_options.py::test_an_option_is_explained_with_its_unit
"""

PAGES = {
    "README.md": README,
    "CHANGELOG.md": CHANGELOG,
    ".github/SECURITY.md": SECURITY,
    ".github/CONTRIBUTING.md": CONTRIBUTING,
}

# What no program can check.
PROMISES = (
    "Report a vulnerability in private",
    "- A client that answers a question as its user",
    "- Denial of service by connections and requests as such",
    "- The content of tasks from the processes that share a store",
)


def claims(page: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each fragment of a page, and its tests."""
    for entry in re.findall(r"^\S.*\n(?:    .*\n)+", PAGES[page], re.MULTILINE):
        fragment, *tests = entry.splitlines()
        yield fragment, [test.strip() for test in tests]


def words(text: str) -> str:
    """Return a text with each white space as one space."""
    return " ".join(text.split())


@cache
def functions(module: Path) -> set[str]:
    """Return the names of the tests of a module, which is not imported: its SDK may be another one."""
    body = ast.parse(module.read_text()).body if module.is_file() else []
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_the_table_is_a_fragment_or_a_test_of_one(page: str) -> None:
    lines = [line for _, tests in claims(page) for line in ("", *tests)]
    assert len(lines) == len(PAGES[page].strip().splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_say_what_is_claimed(page: str) -> None:
    said = words((ROOT / page).read_text())
    assert [fragment for fragment, _ in claims(page) if words(fragment) not in said] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_of_each_claim_are_there(page: str) -> None:
    named = [test for _, tests in claims(page) for test in tests]
    missing = [test for test in named if test.partition("::")[2] not in functions(TESTS / test.partition("::")[0])]
    assert missing == []


@pytest.mark.parametrize("page", ["README.md", ".github/SECURITY.md"])
def test_every_paragraph_has_a_claim(page: str) -> None:
    text = re.sub(r"^```[^`]*^```$|^[#!].*$", "", (ROOT / page).read_text(), flags=re.MULTILINE)
    paragraphs = [words(each) for each in re.split(r"\n(?=- )|\n\n+", text) if each.strip()]
    assert len(paragraphs) > 10
    fragments = [words(fragment) for fragment, _ in claims(page)]
    without = [each for each in paragraphs if not any(fragment in each for fragment in fragments)]
    assert [each for each in without if not each.startswith(PROMISES)] == []
