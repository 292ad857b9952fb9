"""Image files on the controller's disk."""
