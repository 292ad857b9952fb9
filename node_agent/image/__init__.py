"""Guest images made on this machine from a distribution's own packages."""
