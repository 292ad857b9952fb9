"""One PC. See README.md; the parts are imported from their own modules."""
