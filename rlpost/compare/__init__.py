"""SFT against RL from one starting adapter: cells, compute, statistics, report."""
