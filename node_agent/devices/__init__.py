"""The devices of the PC, each of one shape: ports or frames, read, write, reset, save, load. See base.py."""
