"""Models and adapters as files: their folders, their allowed settings, and the merged weight of an adapter."""
