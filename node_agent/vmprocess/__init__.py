"""One VM, one process: the machine inside, its control socket, its files."""
