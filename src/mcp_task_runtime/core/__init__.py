"""The runtime itself: no SDK, no database driver, no wire format. Depends on anyio and pydantic alone."""
