"""A VM's serial console: a ring on disk, read while the VM runs and afterwards."""
