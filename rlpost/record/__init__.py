"""The record of a run: its folder, files, checkpoints, measurements, and what may be said of them."""
