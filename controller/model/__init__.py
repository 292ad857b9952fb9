"""What the controller knows: records as they are kept in etcd, and the pure rules between them."""
