"""Virtio 1.2 over PCI, modern only: transport, split queues, and the devices behind them."""
