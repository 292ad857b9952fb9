"""A small asyncio client for etcd, and a fake that passes the same contract suite."""
