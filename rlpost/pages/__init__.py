"""Output for people: the console, pages and their figures."""
