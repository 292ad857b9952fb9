"""Where VMs go: pure functions over arrays of nodes. filters/ say no, scorers/ say how good, plan.py combines them."""
