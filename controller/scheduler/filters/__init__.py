"""Each filter says, for all nodes at once, where a VM may go; REASON is what people read where it may not.

FILTERS is their order, which only decides under which reason a node is counted: a node passes if all of them agree.
"""

from controller.scheduler.filters import anti_affinity, cordon, cpus, elsewhere, memory, ready, selector

FILTERS = (ready, elsewhere, cordon, selector, memory, cpus, anti_affinity)
