"""The services that show a run's metrics, one file each; rlpost/record/tracking.py chooses among them."""
