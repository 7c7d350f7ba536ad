"""`rlpost doctor`: facts about this machine or a cluster's nodes, and what they mean for a run.

Facts are collected (`facts`, `network`, `probe`), then judged by pure functions (`machine`, `nodes`, `placement`).
"""
