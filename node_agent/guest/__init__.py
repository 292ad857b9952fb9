"""The tiny guest: a multiboot 1 kernel of our own that carries the demo and all tests but the Linux ones."""
