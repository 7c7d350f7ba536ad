"""The records of a comparison, and the plan of its cells."""
