"""The learner: one frozen base, its adapters, and the DeepSpeed ranks that update them."""
