"""Engines: their protocol, vLLM with proven swaps, and a scripted one."""
