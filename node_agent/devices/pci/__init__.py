"""PCI: the host bridge, a function with its BARs, MSI-X."""
