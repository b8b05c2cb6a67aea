"""`python -m mcp_task_runtime`: the command `mcp-tasks`."""

from mcp_task_runtime.operations.cli import main

if __name__ == "__main__":
    main()
