# Owner: APIC. Included by vcpu/_core.pyx: the address space in action (declarations and rules: space.pxd).

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from vcpu.core.atomic cimport *
from vcpu.core.space cimport *
from vcpu.core.state cimport IoHandler, IoRange, IoTable, ClockState

cdef extern from "sys/mman.h" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t length)
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void* MAP_FAILED
cdef extern from "fcntl.h" nogil:
    int posix_fallocate(int fd, long offset, long length)

import os as _os
import sys as _sys
import traceback as _traceback

cdef enum:
    COUNT_IO_INSTRUCTION = 30        # basic exit reasons (SDM 3D appendix C)
    COUNT_APIC_ACCESS = 44
    COUNT_EPT_VIOLATION = 48
    STOP_SPINS = 100                 # a PAUSE of the host takes up to 140 cycles


# ------------------------------------------------------------------ safepoints

cdef void stop_lock(Space* space) noexcept nogil:
    """A futex lock: 0 free, 1 held, 2 held and waited for."""
    if atomic_cas32(&space.stop_owner, 0, 1):
        return
    while atomic_swap32(&space.stop_owner, 2) != 0:
        futex_wait(&space.stop_owner, 2, -1)


cdef void stop_unlock(Space* space) noexcept nogil:
    if atomic_swap32(&space.stop_owner, 0) == 2:
        futex_wake(&space.stop_owner, 1)


cdef void wait_parked(Space* space, CpuState* other) noexcept nogil:
    cdef uint32_t seen, spins = 0
    while atomic_load32(&other.in_guest):
        spins += 1
        if spins < STOP_SPINS:
            cpu_relax()
            continue
        seen = atomic_load32(&space.parked)
        if atomic_load32(&other.in_guest):
            futex_wait(&space.parked, seen, 10000000)


cdef bint space_stop_others(Space* space, CpuState* cpu) noexcept nogil:
    """Hold every other vCPU at a safepoint. What it returns goes to space_resume_others.

    While it waits for another holder the caller counts as parked itself, so two that want the same never deadlock:
    hold no pointer into guest RAM across this call."""
    cdef uint32_t i
    cdef bint entered
    if cpu != NULL and space.cpu_count == 1:
        return True
    entered = cpu != NULL and cpu.in_guest
    if entered:
        guest_leave(cpu)
    stop_lock(space)
    atomic_store32(&space.stop_wanted, 1)
    for i in range(MAX_CPUS):
        if space.cpus[i] != NULL and space.cpus[i] != cpu and atomic_load32(&space.cpus[i].in_guest):
            atomic_or32(&space.cpus[i].attention, ATTN_SAFEPOINT)
    for i in range(MAX_CPUS):
        if space.cpus[i] != NULL and space.cpus[i] != cpu:
            wait_parked(space, space.cpus[i])
    return entered


cdef void space_resume_others(Space* space, CpuState* cpu, bint entered) noexcept nogil:
    if cpu != NULL and space.cpu_count == 1:
        return
    atomic_store32(&space.stop_wanted, 0)
    futex_wake(&space.stop_wanted, MAX_CPUS)
    stop_unlock(space)
    if entered:
        guest_enter(cpu)


# ------------------------------------------------------------------ code pages

cdef inline uint8_t code_bit(CpuState* cpu) noexcept nogil:
    return <uint8_t>(1 << (cpu.index if cpu.index < 7 else 7))


cdef void space_decoding(CpuState* cpu, uint64_t gfn) noexcept nogil:
    """cpu is about to decode from a RAM frame: from here on nobody has a write entry for it."""
    cdef Space* space = cpu.space
    cdef uint8_t* byte
    cdef uint8_t seen
    cdef uint32_t i
    cdef bint entered
    if gfn >= space.frames:
        return
    byte = &space.code_pages[gfn]
    seen = atomic_load8(byte)
    if seen & code_bit(cpu):
        return
    # joining is enough while the byte stays non-zero: a fill of a write entry looks at it after its last chance to change
    while seen != 0:
        if atomic_cas8(byte, seen, seen | code_bit(cpu)):
            return
        seen = atomic_load8(byte)
    entered = space_stop_others(space, cpu)
    atomic_or8(byte, code_bit(cpu))
    for i in range(MAX_CPUS):
        if space.cpus[i] != NULL:
            tlb_drop_writes(space.cpus[i], gfn << PAGE_SHIFT)
    space_resume_others(space, cpu, entered)


cdef void space_code_gone(CpuState* cpu, uint64_t gfn) noexcept nogil:
    # the eighth vCPU and its followers share a bit: none of them may speak for the others
    if gfn < cpu.space.frames and cpu.index < 7:
        atomic_and8(&cpu.space.code_pages[gfn], <uint8_t>~code_bit(cpu))


cdef void code_queue_lock(CpuState* cpu) noexcept nogil:
    while not atomic_cas32(&cpu.code_queue_lock, 0, 1):
        cpu_relax()


cdef void space_wrote_code(Space* space, uint64_t gfn, CpuState* cpu) noexcept nogil:
    """The bytes of the frame have changed. Each vCPU but `cpu` that decoded there drops its blocks before its next block.

    A vCPU that decodes at this very moment either sees the new bytes or has set its bit before we read the byte: the
    writer's copy and the decoder's bit are both followed by a full fence."""
    cdef uint8_t decoded
    cdef uint32_t i
    cdef CpuState* other
    atomic_fence()
    if gfn >= space.frames:
        return
    decoded = atomic_load8(&space.code_pages[gfn])
    for i in range(MAX_CPUS):
        other = space.cpus[i]
        if other == NULL or other == cpu or not decoded & code_bit(other):
            continue
        code_queue_lock(other)
        if other.code_queue_count < CODE_QUEUE:
            other.code_queue[other.code_queue_count] = gfn
            other.code_queue_count += 1
        else:
            other.code_queue_count = CODE_QUEUE_ALL
        atomic_store32(&other.code_queue_lock, 0)
        attend(other, ATTN_CODE_CHANGED)


cdef uint32_t code_queue_take(CpuState* cpu, uint64_t* gfns) noexcept nogil:
    cdef uint32_t count
    atomic_and32(&cpu.attention, ~<uint32_t>ATTN_CODE_CHANGED)
    code_queue_lock(cpu)
    count = cpu.code_queue_count
    if count <= CODE_QUEUE:
        memcpy(gfns, cpu.code_queue, count * sizeof(uint64_t))
    cpu.code_queue_count = 0
    atomic_store32(&cpu.code_queue_lock, 0)
    return count


# ------------------------------------------------------------------ RAM as devices see it

cdef bint ram_range(Space* space, uint64_t gpa, uint64_t size) noexcept nogil:
    cdef uint64_t end = gpa + size
    if end < gpa:
        return False
    if end <= space.low_bytes:
        return True
    return gpa >= 4 * <uint64_t>GIB and end <= 4 * <uint64_t>GIB + space.ram_bytes - space.low_bytes


cdef bint space_read(Space* space, uint64_t gpa, void* data, uint64_t size) noexcept nogil:
    if not ram_range(space, gpa, size):
        return False
    memcpy(data, space.ram + ram_offset(space, gpa), size)
    return True


cdef bint space_write(Space* space, uint64_t gpa, const void* data, uint64_t size) noexcept nogil:
    if not ram_range(space, gpa, size):
        return False
    memcpy(space.ram + ram_offset(space, gpa), data, size)
    space_wrote(space, gpa, size)
    return True


cdef void space_wrote(Space* space, uint64_t gpa, uint64_t size) noexcept nogil:
    """After bytes of RAM changed by other means than a vCPU's store: dirty bits (never before the bytes: a harvest
    between the two would lose them), then decoded code."""
    cdef uint64_t page = gpa & ~<uint64_t>0xFFF
    atomic_fence()
    while size != 0 and page < gpa + size:
        mark_dirty(space, page)
        if space.code_pages[page >> PAGE_SHIFT]:
            space_wrote_code(space, page >> PAGE_SHIFT, NULL)
        page += PAGE_SIZE


# ------------------------------------------------------------------ ports and frames

cdef IoRange* find_range(IoRange* ranges, uint32_t count, uint64_t address) noexcept nogil:
    """The range that holds the address, or NULL."""
    cdef uint32_t low = 0, high = count, middle
    while low < high:
        middle = (low + high) >> 1
        if ranges[middle].end <= address:
            low = middle + 1
        else:
            high = middle
    if low < count and ranges[low].first <= address:
        return &ranges[low]
    return NULL


cdef void call_device(CpuState* cpu, IoHandler handler, uint64_t address, void* value, uint32_t size,
                      bint is_write) noexcept nogil:
    """A device may take locks, the GIL, and write RAM: the vCPU is parked meanwhile."""
    cdef bint entered = cpu.in_guest
    if entered:
        guest_leave(cpu)
    handler.fn(handler.device, address, value, size, is_write)
    if entered:
        guest_enter(cpu)


cdef bint io_access(CpuState* cpu, bint is_port, uint64_t address, void* value, uint32_t size,
                    bint is_write) noexcept nogil:
    """Give an access to its owner: in one piece where that is 1, 2, 4 or 8 bytes within its range, else in smaller ones.
    Bytes that nobody owns read as ones. True: at least one byte had an owner."""
    cdef IoTable* table
    cdef IoRange* found
    cdef IoHandler handler
    cdef uint32_t done = 0, piece
    cdef bint owned = False
    while done < size:
        piece = 8
        while piece > size - done:
            piece >>= 1
        # the table is good while this vCPU is in the guest: whoever replaces it stops us first
        table = <IoTable*>atomic_load_pointer(&cpu.space.io)
        if is_port:
            found = find_range(table.port, table.ports, address + done)
        else:
            found = find_range(table.frame, table.frames, address + done)
        if found == NULL:
            if not is_write:
                (<uint8_t*>value)[done] = 0xFF
            done += 1
            continue
        while address + done + piece > found.end:
            piece >>= 1
        handler = found.handler
        call_device(cpu, handler, address + done, <uint8_t*>value + done, piece, is_write)
        owned = True
        done += piece
    return owned


cdef bint io_port(CpuState* cpu, uint32_t port, void* value, uint32_t size, bint is_write) noexcept nogil:
    cpu.exit_counts[COUNT_IO_INSTRUCTION] += 1
    return io_access(cpu, True, port, value, size, is_write)


cdef bint io_frame(CpuState* cpu, uint64_t gpa, void* value, uint32_t size, bint is_write) noexcept nogil:
    if gpa >> PAGE_SHIFT == cpu.apic.base >> PAGE_SHIFT and apic_is_xapic(cpu):
        cpu.exit_counts[COUNT_APIC_ACCESS] += 1
        apic_page(cpu, <uint32_t>gpa & 0xFFF, value, size, is_write)
        return True
    cpu.exit_counts[COUNT_EPT_VIOLATION] += 1
    if io_access(cpu, False, gpa, value, size, is_write):
        return True
    return cpu.space.open_bus != 0


cdef class PythonDevice:
    """A device written in Python, as the bus calls it. It never lets an exception reach the guest's loop."""
    cdef object device
    cdef object read
    cdef object write
    cdef bint blamed

    def __init__(self, device):
        self.device = device
        self.read = device.read
        self.write = device.write

    cdef void blame(self, uint64_t address) noexcept:
        if self.blamed:
            return
        self.blamed = True
        print(f"vcpu: {type(self.device).__name__} failed at {address:#x}; reported once", file=_sys.stderr)
        _traceback.print_exc(file=_sys.stderr)


cdef void python_io(void* device, uint64_t address, void* value, uint32_t size, bint is_write) noexcept with gil:
    cdef PythonDevice self = <PythonDevice>device
    cdef uint64_t word = 0
    try:
        if is_write:
            memcpy(&word, value, size)
            self.write(address, size, word)
        else:
            word = self.read(address, size) & 0xFFFFFFFFFFFFFFFFULL
            memcpy(value, &word, size)
    except BaseException:
        if not is_write:
            memset(value, 0xFF, size)
        try:
            self.blame(address)
        except BaseException:
            pass                     # stderr is gone: the guest goes on all the same


cdef IoTable* table_new(uint32_t ports, uint32_t frames) except NULL:
    cdef IoTable* table = <IoTable*>calloc(1, sizeof(IoTable) + (ports + frames) * sizeof(IoRange))
    if table == NULL:
        raise MemoryError()
    table.ports = ports
    table.frames = frames
    table.port = <IoRange*>(<uint8_t*>table + sizeof(IoTable))
    table.frame = table.port + ports
    return table


cdef class Ram:
    """Owns the mapping of the guest's memory; lives as long as any view of it."""
    cdef uint8_t* address
    cdef readonly uint64_t size
    cdef readonly int fd

    def __cinit__(self, uint64_t size, fd, bint reserve):
        cdef int error
        cdef long length = <long>size
        self.fd = -1
        self.fd = _os.memfd_create("virga-ram", _os.MFD_CLOEXEC) if fd is None else _os.dup(fd)
        if fd is None:
            _os.ftruncate(self.fd, size)
        elif _os.fstat(self.fd).st_size < size:
            raise ValueError(f"the file holds {_os.fstat(self.fd).st_size} bytes, RAM needs {size}")
        if reserve:
            with nogil:
                error = posix_fallocate(self.fd, 0, length)
            if error:
                raise OSError(error, _os.strerror(error))
        self.address = <uint8_t*>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if <void*>self.address == MAP_FAILED:
            self.address = NULL
            raise MemoryError(f"cannot map {size} bytes of guest RAM")
        self.size = size

    def __dealloc__(self):
        if self.address != NULL:
            munmap(self.address, self.size)
        if self.fd >= 0:
            _os.close(self.fd)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.size, 0, flags)


cdef class AddressSpace:
    """Guest-physical memory and who answers beside it. Shared by the vCPUs of one machine.

    ram_bytes: a multiple of 4 KiB. fd: a file to adopt (it is duplicated) instead of a new memfd. reserve: allocate
    all of it now; otherwise a guest costs what it touched (a memfd is no file on a disk that could be full)."""
    cdef Space c
    cdef Ram ram
    cdef dict _handlers              # id(dev) -> (PythonDevice or dev, dev): never shrinks, a call may be on its way
    cdef list _ports                 # (first, end, dev), sorted
    cdef list _frames
    cdef object _extint
    cdef object _eoi
    cdef object __weakref__

    def __cinit__(self, ram_bytes, fd=None, bint reserve=False):
        if ram_bytes <= 0 or ram_bytes % PAGE_SIZE or ram_bytes > 1 << 38:
            raise ValueError(f"RAM of {ram_bytes} bytes: must be a multiple of 4 KiB, up to 256 GiB")
        self.ram = Ram(ram_bytes, fd, reserve)
        self._handlers = {}
        self._ports = []
        self._frames = []
        self.c.ram = self.ram.address
        self.c.ram_bytes = ram_bytes
        self.c.low_bytes = min(ram_bytes, LOW_RAM_MAX)
        self.c.open_bus = 1
        self.c.io = table_new(0, 0)
        self.c.frames = (self.c.low_bytes if self.c.low_bytes == self.c.ram_bytes else
                         4 * <uint64_t>GIB + self.c.ram_bytes - self.c.low_bytes) >> PAGE_SHIFT
        self.c.p2m = <uint64_t*>calloc(self.c.frames, sizeof(uint64_t))
        self.c.code_pages = <uint8_t*>calloc(self.c.frames, 1)
        self.c.dirty = <uint64_t*>calloc((self.c.ram_bytes >> PAGE_SHIFT) // 64 + 1, sizeof(uint64_t))
        if self.c.p2m == NULL or self.c.code_pages == NULL or self.c.dirty == NULL:
            raise MemoryError()
        self._fill_p2m()

    cdef void _fill_p2m(self) noexcept:
        cdef uint64_t offset, gpa
        for offset in range(0, self.c.ram_bytes, PAGE_SIZE):
            gpa = offset if offset < self.c.low_bytes else offset - self.c.low_bytes + 4 * <uint64_t>GIB
            self.c.p2m[gpa >> PAGE_SHIFT] = <uint64_t>self.c.ram + offset | P2M_PRESENT | P2M_WRITABLE

    def __dealloc__(self):
        free(self.c.p2m)
        free(self.c.code_pages)
        free(self.c.dirty)
        free(self.c.io)

    cdef void attach(self, CpuState* cpu) except *:
        """A vCPU joins; it holds on to this space and detaches before it goes."""
        if cpu.index >= MAX_CPUS:
            raise ValueError(f"vCPU {cpu.index}: at most {MAX_CPUS} in one address space")
        if self.c.cpus[cpu.index] != NULL:
            raise ValueError(f"this address space has a vCPU {cpu.index} already")
        cpu.space = &self.c
        self.c.cpus[cpu.index] = cpu
        self.c.cpu_count += 1

    cdef void detach(self, CpuState* cpu) noexcept:
        """A Vcpu object goes away: nobody may reach its state any more."""
        cdef bint entered
        with nogil:
            entered = space_stop_others(&self.c, NULL)
            if self.c.cpus[cpu.index] == cpu:
                self.c.cpus[cpu.index] = NULL
                self.c.cpu_count -= 1
            space_resume_others(&self.c, NULL, entered)

    @property
    def fd(self):
        return self.ram.fd

    @property
    def ram_bytes(self):
        return self.c.ram_bytes

    @property
    def memory(self):
        """A writable view of RAM by file offset. Writes through it are seen by no dirty log and drop no decoded code."""
        return memoryview(self.ram)

    @property
    def open_bus(self):
        """Frames that nobody owns: True: read as ones, writes are lost; False: EPT violation exits."""
        return self.c.open_bus != 0

    @open_bus.setter
    def open_bus(self, bint value):
        self.c.open_bus = value

    def read(self, uint64_t gpa, uint64_t size):
        """Bytes of RAM, as a device reads them. ValueError where it is no RAM."""
        if not ram_range(&self.c, gpa, size):
            raise ValueError(f"{size} bytes at {gpa:#x} are not RAM")
        return (<char*>self.c.ram + ram_offset(&self.c, gpa))[:size] if size else b""

    def write(self, uint64_t gpa, const uint8_t[::1] data not None):
        """Write RAM as a device does: marks it dirty, drops code decoded from it. ValueError where it is no RAM."""
        cdef uint64_t size = data.shape[0]
        if not ram_range(&self.c, gpa, size):
            raise ValueError(f"{size} bytes at {gpa:#x} are not RAM")
        if size:
            with nogil:
                space_write(&self.c, gpa, &data[0], size)

    def wrote(self, uint64_t gpa, uint64_t size):
        """Bytes were changed through `memory`: mark them dirty and drop code decoded from them."""
        if not ram_range(&self.c, gpa, size):
            raise ValueError(f"{size} bytes at {gpa:#x} are not RAM")
        with nogil:
            space_wrote(&self.c, gpa, size)

    # ---------------------------------------------------------------- who answers where

    cdef IoHandler _handler(self, dev) except *:
        cdef IoHandler handler
        cdef PythonDevice bridge
        capsule = getattr(dev, "io_handler", None)
        if capsule is not None:
            if not PyCapsule_IsValid(capsule, "vcpu.io_handler"):
                raise ValueError(f"{type(dev).__name__}.io_handler is no vcpu.io_handler capsule")
            self._handlers[id(dev)] = (capsule, dev)
            return (<IoHandler*>PyCapsule_GetPointer(capsule, "vcpu.io_handler"))[0]
        if id(dev) not in self._handlers:
            self._handlers[id(dev)] = (PythonDevice(dev), dev)
        bridge = self._handlers[id(dev)][0]
        handler.fn = python_io
        handler.device = <void*>bridge
        return handler

    cdef void _publish(self, list ports, list frames) except *:
        """Replace the table of ranges while no vCPU looks at it."""
        cdef IoTable* table = table_new(len(ports), len(frames))
        cdef IoTable* former
        cdef uint32_t i = 0
        cdef bint entered
        try:
            for first, end, dev in ports + frames:
                table.port[i] = IoRange(first, end, self._handler(dev))
                i += 1
        except BaseException:
            free(table)
            raise
        with nogil:
            entered = space_stop_others(&self.c, NULL)
            former = self.c.io
            atomic_store_pointer(&self.c.io, table)
            space_resume_others(&self.c, NULL, entered)
        free(former)
        self._ports = ports
        self._frames = frames

    @staticmethod
    def _with(ranges, first, size, dev, what):
        for other_first, other_end, other in ranges:
            if first < other_end and other_first < first + size:
                raise ValueError(f"{what} {first:#x}-{first + size - 1:#x} of {type(dev).__name__} overlap "
                                 f"{other_first:#x}-{other_end - 1:#x} of {type(other).__name__}")
        return sorted([*ranges, (first, first + size, dev)], key=lambda entry: entry[0])

    @staticmethod
    def _without(ranges, first, size, what):
        kept = [entry for entry in ranges if (entry[0], entry[1]) != (first, first + size)]
        if len(kept) == len(ranges):
            raise ValueError(f"nobody owns the {what} {first:#x}-{first + size - 1:#x}")
        return kept

    def add_ports(self, first, count, dev):
        """Ports [first, first + count) are answered by dev. Overlap with another owner: ValueError."""
        if first < 0 or count < 1 or first + count > 0x10000:
            raise ValueError(f"ports {first:#x} + {count} are not within 0-0xffff")
        self._publish(AddressSpace._with(self._ports, first, count, dev, "ports"), self._frames)

    def remove_ports(self, first, count):
        self._publish(AddressSpace._without(self._ports, first, count, "ports"), self._frames)

    def add_frames(self, gpa, size, dev):
        """Guest-physical [gpa, gpa + size) is answered by dev; any alignment. Overlap, also with RAM: ValueError."""
        if gpa < 0 or size < 1 or gpa + size > <uint64_t>1 << MAXPHYADDR:
            raise ValueError(f"{size} bytes at {gpa:#x} are not within {MAXPHYADDR} address bits")
        high_end = 4 * GIB + self.ram_bytes - self.c.low_bytes if self.c.frames << PAGE_SHIFT > self.c.low_bytes else 0
        if gpa < self.c.low_bytes or (gpa < high_end and gpa + size > 4 * GIB):
            raise ValueError(f"{gpa:#x}-{gpa + size - 1:#x} of {type(dev).__name__} overlap RAM")
        if gpa < APIC_PAGE + PAGE_SIZE and gpa + size > APIC_PAGE:
            raise ValueError(f"{gpa:#x}-{gpa + size - 1:#x} of {type(dev).__name__} overlap the local APIC")
        self._publish(self._ports, AddressSpace._with(self._frames, gpa, size, dev, "frames"))

    def remove_frames(self, gpa, size):
        self._publish(self._ports, AddressSpace._without(self._frames, gpa, size, "frames"))

    # ---------------------------------------------------------------- dirty log

    def dirty_start(self):
        """Begin to note which frames are written."""
        with nogil:
            self.c.dirty_on = 1
            self._harvest(NULL)

    def dirty_harvest(self):
        """Frames written since the last harvest: one bit each by file offset, least significant first. The contents
        to copy are those found after this returns."""
        out = bytearray(((self.c.ram_bytes >> PAGE_SHIFT) + 7) // 8)
        words = bytearray(((self.c.ram_bytes >> PAGE_SHIFT) // 64 + 1) * 8)
        cdef uint8_t[::1] view = words
        cdef uint64_t* target = <uint64_t*>&view[0]
        with nogil:
            self._harvest(target)
        out[:] = words[:len(out)]
        return out

    cdef void _harvest(self, uint64_t* out) noexcept nogil:
        """Take the bits first, then every write entry: whoever wrote through one until now had set its bit before."""
        cdef uint64_t i, taken
        cdef bint entered
        for i in range((self.c.ram_bytes >> PAGE_SHIFT) // 64 + 1):
            taken = atomic_swap64(&self.c.dirty[i], 0) if self.c.dirty[i] else 0
            if out != NULL:
                out[i] = taken
        entered = space_stop_others(&self.c, NULL)
        for i in range(MAX_CPUS):
            if self.c.cpus[i] != NULL:
                tlb_flush_all(self.c.cpus[i])
        space_resume_others(&self.c, NULL, entered)

    def dirty_stop(self):
        self.c.dirty_on = 0

    # ---------------------------------------------------------------- interrupts

    def deliver_msi(self, uint64_t address, uint32_t data):
        """A message-signalled interrupt (SDM 3A 11.11). From any thread."""
        with nogil:
            apic_deliver_msi(&self.c, address, data)

    def set_extint(self, acknowledge):
        """The PIC: acknowledge() gives the vector when vCPU 0 takes its INTR (called with the GIL)."""
        self._extint = acknowledge
        self.c.extint_device = <void*>acknowledge
        self.c.extint_fn = python_extint

    def extint_raise(self):
        """The PIC's INTR line is up."""
        atomic_store32(&self.c.extint, 1)
        if self.c.cpus[0] != NULL:
            attend(self.c.cpus[0], ATTN_INTERRUPT)

    def extint_lower(self):
        atomic_store32(&self.c.extint, 0)

    def set_eoi_callback(self, callback):
        """callback(vector) is told the end of each level-triggered interrupt (called with the GIL)."""
        self._eoi = callback
        self.c.eoi_device = <void*>callback
        self.c.eoi_fn = python_eoi


cdef void python_extint(void* device, uint64_t address, void* value, uint32_t size, bint is_write) noexcept with gil:
    try:
        (<uint8_t*>value)[0] = (<object>device)() & 0xFF
    except BaseException:
        (<uint8_t*>value)[0] = 7                 # the PIC's spurious vector's low bits
        _traceback.print_exc(file=_sys.stderr)


cdef void python_eoi(void* device, uint64_t address, void* value, uint32_t size, bint is_write) noexcept with gil:
    try:
        (<object>device)(<int>address)
    except BaseException:
        _traceback.print_exc(file=_sys.stderr)
