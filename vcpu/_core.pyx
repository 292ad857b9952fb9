"""The processor, compiled: one extension, so that engine, MMU, exceptions and APIC call each other directly.

Owns:    nothing; each fragment has an owner, named on its first line.
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from vcpu.core.state cimport *
from vcpu.core.arch cimport *
from vcpu.core.atomic cimport *
from vcpu.core.clock cimport *
from vcpu.core.engine cimport *
from vcpu.core.mem cimport *
from vcpu.core.space cimport *
from vcpu.core.tlb cimport *

include "core/space.pxi"
include "core/clock.pxi"
include "core/mmu.pxi"
include "core/memory.pxi"
include "core/seg.pxi"
include "core/control.pxi"
include "core/msr.pxi"
include "core/cpuid.pxi"
include "core/exception.pxi"
include "core/task.pxi"
include "core/transfer.pxi"
include "core/apic.pxi"
include "core/apic_regs.pxi"
include "core/kvm.pxi"
include "core/smp.pxi"
include "core/decode.pxi"
include "core/blocks.pxi"
include "core/engine.pxi"
include "core/vmx.pxi"
include "core/vcpu.pxi"
include "core/fximage.pxi"
include "core/snapshot.pxi"
