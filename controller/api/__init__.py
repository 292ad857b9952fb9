"""The public API: each handler authorises, validates, loads, decides, commits."""
