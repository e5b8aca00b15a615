"""The engine: runs what techniques ask by the fewest passes, and leaves everything as it was."""
