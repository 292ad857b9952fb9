"""`virga run`: one machine without a cloud. See main.py."""

from node_agent.run.main import main

__all__ = ["main"]
