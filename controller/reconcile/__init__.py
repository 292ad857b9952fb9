"""Observed against desired, again and again, until they are equal. Each reconciler may be killed anywhere."""
