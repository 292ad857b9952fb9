"""The agent of a node: what the controller wants, made so."""
