"""What keeps a sync running: the lease, and what may write while somebody else does not."""
