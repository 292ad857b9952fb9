"""State in etcd: the keys, a cache that follows them, and the one place that commits."""
