"""Tools that drive cancellations and interleavings, one step at a time."""
