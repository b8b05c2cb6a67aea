"""`python -m mcp_task_runtime`: the command `mcp-tasks`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; without the extra `cli`, say what it needs, and exit with 2."""
    try:
        from mcp_task_runtime.operations.cli import main as command
    except ImportError as error:
        if error.name is not None:  # it does not come from this package: something is broken
            raise
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    command()


if __name__ == "__main__":
    main()
