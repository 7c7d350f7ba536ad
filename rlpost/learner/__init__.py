"""The learner: one frozen base with its adapters, and the DeepSpeed ranks that update the adapters."""
