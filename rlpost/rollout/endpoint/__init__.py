"""Plays episodes with a model behind an OpenAI-compatible server, of which no tokens are known."""
