"""The process that VM processes are forked from."""
