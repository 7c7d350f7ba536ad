"""The memory plan of a run, from its settings and the model's files alone: pure functions, nothing is loaded."""
