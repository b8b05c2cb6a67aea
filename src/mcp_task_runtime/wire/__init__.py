"""The two protocols, as functions between JSON objects and core values. No I/O, no SDK."""
