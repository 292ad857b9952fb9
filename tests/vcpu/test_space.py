"""The guest-physical address space: RAM as devices see it, who answers at ports and frames, the dirty log; and Clock."""

import ctypes
import gc
import os
import struct
import time

import pytest
import vcpu
from guest_machine import PD, LongMode

MIB = 1 << 20
MMIO = 0x2000000                 # above the guest's 16 MiB


class Recorder:
    """Answers reads with what it is told, writes down the rest."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.seen: list[tuple[object, ...]] = []

    def read(self, address: int, size: int) -> int:
        self.seen.append(("r", address, size))
        return self.value

    def write(self, address: int, size: int, value: int) -> None:
        self.seen.append(("w", address, size, value))


@pytest.fixture
def guest() -> LongMode:
    guest = LongMode()
    guest.write(PD + (MMIO >> 21) * 8, MMIO | 0x87)
    return guest


def test_ram_is_where_the_contract_says() -> None:
    space = vcpu.AddressSpace(4 << 30)
    space.write(4 << 30, b"high")
    assert bytes(space.memory[3 << 30:(3 << 30) + 4]) == b"high"
    for gpa, size in ((3 << 30, 1), ((3 << 30) - 1, 2), (5 << 30, 1), (1 << 40, 1), ((1 << 64) - 1, 2)):
        with pytest.raises(ValueError, match="not RAM"):
            space.read(gpa, size)


def test_memory_is_not_taken_before_it_is_touched() -> None:
    space = vcpu.AddressSpace(512 * MIB)
    assert os.fstat(space.fd).st_blocks == 0
    assert os.fstat(vcpu.AddressSpace(4 * MIB, reserve=True).fd).st_blocks * 512 == 4 * MIB


@pytest.mark.parametrize("size", [0, -4096, 4097, 1 << 40])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4 KiB"):
        vcpu.AddressSpace(size)


def test_a_file_is_adopted_and_checked() -> None:
    first = vcpu.AddressSpace(4 * MIB)
    first.write(123, b"same")
    assert vcpu.AddressSpace(4 * MIB, first.fd).read(123, 4) == b"same"
    with pytest.raises(ValueError, match="holds"):
        vcpu.AddressSpace(8 * MIB, first.fd)


def test_a_view_outlives_its_space() -> None:
    view = vcpu.AddressSpace(4 * MIB).memory
    gc.collect()
    view[5] = 7
    assert view[5] == 7


def test_owners_do_not_overlap() -> None:
    space = vcpu.AddressSpace(16 * MIB)
    space.add_ports(0x60, 4, Recorder())
    space.add_frames(MMIO + 0x100, 0x10, Recorder())
    for add, first, size in ((space.add_ports, 0x63, 1), (space.add_ports, 0x5F, 2), (space.add_ports, 0xFFFF, 2),
                             (space.add_frames, MMIO, 0x101), (space.add_frames, MIB, 4), (space.add_frames, 1 << 40, 1),
                             (space.add_frames, 0xFEE00010, 4)):
        with pytest.raises(ValueError, match="0x"):
            add(first, size, Recorder())
    space.remove_ports(0x60, 4)
    space.add_ports(0x63, 1, Recorder())
    with pytest.raises(ValueError, match="nobody owns"):
        space.remove_frames(MMIO, 0x10)


def test_ports_reach_their_owner_in_their_size(guest: LongMode) -> None:
    device = Recorder(0x1122334455667788)
    guest.space.add_ports(0x500, 8, device)
    end = guest.run("mov edx, 0x500; in eax, dx; mov ebx, eax; mov eax, 0xabcd; out dx, ax; mov dx, 0x506; in eax, dx; hlt")
    assert end.exit.reason == vcpu.EXIT_REASON_HLT
    assert guest.cpu.get("rbx") == 0x55667788
    assert guest.cpu.get("rax") == 0xFFFF7788                       # two bytes have nobody
    assert device.seen == [("r", 0x500, 4), ("w", 0x500, 2, 0xABCD), ("r", 0x506, 2)]
    assert guest.cpu.exit_counts()[vcpu.EXIT_REASON_IO_INSTRUCTION] == 3


def test_windows_smaller_than_a_page(guest: LongMode) -> None:
    low, high = Recorder(1), Recorder(2)
    guest.space.add_frames(MMIO + 0x10, 8, low)
    guest.space.add_frames(MMIO + 0x18, 8, high)
    guest.run(f"mov rdi, {MMIO}; mov eax, [rdi + 0x10]; mov ebx, [rdi + 0x18]; mov rcx, [rdi + 0x20]; mov qword ptr [rdi + 0x18], 9;"
              "add byte ptr [rdi + 0x11], 1; hlt")
    assert [guest.cpu.get(name) for name in ("rax", "rbx", "rcx")] == [1, 2, (1 << 64) - 1]
    assert low.seen == [("r", MMIO + 0x10, 4), ("r", MMIO + 0x11, 1), ("w", MMIO + 0x11, 1, 2)]
    assert high.seen == [("r", MMIO + 0x18, 4), ("w", MMIO + 0x18, 8, 9)]


def test_without_open_bus_a_frame_of_nobody_leaves(guest: LongMode) -> None:
    guest.space.open_bus = False
    end = guest.run(f"mov rdi, {MMIO}; mov eax, [rdi + 0x44]; hlt")
    assert end.exit.reason == vcpu.EXIT_REASON_EPT_VIOLATION
    assert end.exit.gpa == MMIO + 0x44


def test_a_device_that_fails_harms_nobody(guest: LongMode, capfd: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def read(self, address: int, size: int) -> int:
            raise RuntimeError("no")

        def write(self, address: int, size: int, value: int) -> None:
            raise RuntimeError("no")

    guest.space.add_ports(0x500, 8, Broken())
    guest.run("mov edx, 0x500; in al, dx; out dx, al; in ax, dx; hlt")
    assert guest.cpu.get("rax") & 0xFFFF == 0xFFFF
    assert capfd.readouterr().err.count("reported once") == 1


class IoHandler(ctypes.Structure):
    _fields_ = [("fn", ctypes.c_void_p), ("device", ctypes.c_void_p)]


def test_a_compiled_device_is_called_by_its_pointer(guest: LongMode) -> None:
    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int)
    def serve(device: int, address: int, value: int, size: int, is_write: int) -> None:
        ctypes.memmove(value, struct.pack("<Q", device + address), size)

    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    class Compiled:
        handler = IoHandler(ctypes.cast(serve, ctypes.c_void_p), 0x10000)
        name = b"vcpu.io_handler"
        io_handler = new(ctypes.addressof(handler), name, None)

    guest.space.add_ports(0x500, 8, Compiled())
    guest.run("mov edx, 0x502; in eax, dx; hlt")
    assert guest.cpu.get("rax") == 0x10502


def test_a_device_may_move_its_own_window(guest: LongMode) -> None:
    """As a PCI BAR does, from within the vCPU's own access."""
    class Mover(Recorder):
        def write(self, address: int, size: int, value: int) -> None:
            guest.space.remove_ports(0x500, 8)
            guest.space.add_ports(value, 8, self)

    guest.space.add_ports(0x500, 8, Mover(5))
    guest.run("mov edx, 0x500; mov eax, 0x700; out dx, ax; in al, dx; mov bl, al; mov edx, 0x700; in al, dx; hlt")
    assert (guest.cpu.get("rbx"), guest.cpu.get("rax") & 0xFF) == (0xFF, 5)


def test_dirty_log_of_vcpu_and_device(guest: LongMode) -> None:
    guest.run("mov rdi, 0x400000; mov [rdi], rax; hlt")             # a write entry in the TLB before the log starts
    guest.space.dirty_start()
    end = guest.run("mov rdi, 0x400000; mov [rdi], rax; mov [rdi + 0x4ffc], rax; mov rax, [rdi + 0x8000]; hlt")
    assert end.exit.reason == vcpu.EXIT_REASON_HLT
    guest.space.write(0x600FFF, b"ab")

    def harvest() -> set[int]:
        bits = guest.space.dirty_harvest()
        return {frame for frame in range(16 * MIB >> 12) if bits[frame >> 3] >> (frame & 7) & 1}

    assert harvest() - {0x1, 0x20, 0x21, 0x22, 0x23} == {0x400, 0x404, 0x405, 0x600, 0x601}    # code, page tables
    assert harvest() == set()
    guest.run("mov rdi, 0x400000; mov [rdi], rax; hlt")
    assert 0x400 in harvest()
    guest.space.dirty_stop()


def test_code_that_a_device_overwrites(guest: LongMode) -> None:
    class Loader(Recorder):
        def write(self, address: int, size: int, value: int) -> None:
            guest.space.write(0x5000, b"\xb8" + struct.pack("<I", value) + b"\xc3")

    guest.space.write(0x5000, b"\xb8\x01\x00\x00\x00\xc3")            # mov eax, 1; ret
    guest.space.add_ports(0x500, 1, Loader())
    guest.run("mov rbx, 0x5000; call rbx; mov r8d, eax; mov edx, 0x500; mov al, 2; out dx, al; call rbx; hlt")
    assert (guest.cpu.get("r8"), guest.cpu.get("rax")) == (1, 2)


def test_real_clock_stands_still_while_paused() -> None:
    clock = vcpu.Clock("real")
    clock.pause()
    before = clock.now_ns()
    time.sleep(0.01)
    assert clock.now_ns() == before
    clock.resume()
    assert before <= clock.now_ns()
    other = vcpu.Clock("real")
    other.pause()
    other.load(clock.save())
    assert before <= other.now_ns() <= clock.now_ns()


@pytest.mark.parametrize(("field", "value"), [
    ("tsc_hz", 0), ("tsc_hz", 1 << 62), ("tsc_hz", -1), ("now_ns", -1), ("now_ns", 1 << 63), ("seed", -1)])
def test_a_saved_clock_that_cannot_be_changes_nothing(field: str, value: int) -> None:
    clock = vcpu.Clock("virtual", wall_ns=5)
    before = clock.save()
    with pytest.raises((ValueError, OverflowError)):
        clock.load(before | {"now_ns": 100, "wall_ns": 6, field: value})
    assert clock.save() == before


def test_virtual_clock_is_skipped_forward_only() -> None:
    clock = vcpu.Clock("virtual", wall_ns=5)
    clock.advance_to(100)
    clock.advance_to(50)
    assert (clock.now_ns(), clock.wall_ns) == (100, 5)
    with pytest.raises(ValueError, match="real"):
        vcpu.Clock("real").advance_to(1)
    with pytest.raises(ValueError, match="mode"):
        vcpu.Clock("imaginary")
    with pytest.raises(ValueError, match="mode"):
        vcpu.Clock("real").load(clock.save())


def test_a_vcpu_keeps_its_number_to_itself() -> None:
    space, clock = vcpu.AddressSpace(4 * MIB), vcpu.Clock("virtual")
    first = vcpu.Vcpu(space, clock, 0, 2)
    with pytest.raises(ValueError, match="already"):
        vcpu.Vcpu(space, clock, 0, 2)
    with pytest.raises(ValueError, match="at most"):
        vcpu.Vcpu(space, clock, 64, 65)
    del first
    gc.collect()
    vcpu.Vcpu(space, clock, 0, 2)
