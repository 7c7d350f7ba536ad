"""One file a task, and what tasks share."""
