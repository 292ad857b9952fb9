"""Puts a kernel and what it needs into a machine's memory. See loader.py."""

from node_agent.boot.layout import BootError

__all__ = ["BootError"]
