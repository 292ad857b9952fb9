"""The processor: vcpu.AddressSpace, Clock, Vcpu, Vmcs, VmExit; the architecture's constants by the manual's names.

Owns:    joining the instruction table with the compiled handlers, once, at import.
Never:   knows of machines, nodes or clouds.
Threads: see each class.
"""

from vcpu import _core
from vcpu.isa import table as _table

_rows = _table.all_rows()
_ids = {name: number for number, name in enumerate(sorted({n for row in _rows for n in row.names}), start=1)}
_core.load_tables(*_table.pack(_rows, _ids), _ids)

from vcpu.ops import _integer, _sse, _system, _x87  # noqa: E402, F401  (each registers its handlers)
from vcpu._core import AddressSpace, Clock, Vcpu, VmExit, Vmcs  # noqa: E402, F401
from vcpu.vmcs import *  # noqa: E402, F403

del _rows, _ids
