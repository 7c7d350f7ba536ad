"""Resolved configurations of every shipped experiment: a changed default shows in the diff.

Refresh them with `python -m tests.golden.refresh`, then read the diff.
"""
