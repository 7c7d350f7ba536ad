"""Navigation: follow numbered instructions through the streets of a city (arXiv 2501.17161, section 5.1)."""
