"""The `virga` command: a client of the public API, and the starter of local clouds. Imports nothing but the stubs."""
