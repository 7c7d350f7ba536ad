"""What a comparison is: its parts as records, and the plan of its cells."""
