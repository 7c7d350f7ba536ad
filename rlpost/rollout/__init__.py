"""Rollouts: engines, conversations, episodes, the actors that run them and the pool of actors."""
