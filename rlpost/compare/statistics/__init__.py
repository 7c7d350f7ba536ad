"""What a comparison's episodes say: estimates with intervals, causes of failures, directions."""
