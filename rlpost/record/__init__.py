"""The record of a run: its folder, files, checkpoints, measurements, and the conclusions drawn from them."""
