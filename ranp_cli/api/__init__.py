"""The public functions, each a story that reads from top to bottom."""
