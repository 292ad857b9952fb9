"""Live migration: one VM process sends itself to another."""
