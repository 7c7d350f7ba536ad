"""Models and adapters as files: where they lie, what they may say, the weight that an adapter stands for."""
