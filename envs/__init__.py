"""Gymnasium environments with text in and text out. Nothing here knows of tokens, tensors or Ray."""
