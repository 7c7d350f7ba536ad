"""Ray: starting and joining it, waiting for its actors, a user's code on its way to them."""
