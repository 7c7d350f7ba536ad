"""Ray: starting or joining it, waiting for its actors, and shipping a user's code to them."""
