"""Each scorer says, for all nodes at once, how good a place each is: 0 to 1. POLICIES weighs them."""

from controller.scheduler.scorers import balance, pack, spread

SCORERS = (spread, pack, balance)
POLICIES = {
    "spread": {"spread": 0.8, "balance": 0.2},
    "pack": {"pack": 0.8, "balance": 0.2},
}
