"""The laws as checks: one function a law and case, for any store and queue."""
