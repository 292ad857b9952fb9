"""Virga's controller: the API, the scheduler, the reconcilers. Start at README.md."""
