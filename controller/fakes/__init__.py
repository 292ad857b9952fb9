"""Fakes that stand beside the real thing."""
