"""The statistics of a comparison: estimates with intervals, causes of failures, directions."""
