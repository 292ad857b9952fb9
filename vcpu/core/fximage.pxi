# Owner: APIC. Included by vcpu/_core.pyx: the x87 and SSE registers as an FXSAVE64 image (SDM 1 10.5.1, 2A FXSAVE),
# for saving a vCPU and for tests. The instructions themselves are in vcpu/ops.

cdef void fpu_to_image(CpuState* cpu, uint8_t* image) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t top = cpu.fsw >> 11 & 7
    memset(image, 0, 512)
    (<uint16_t*>image)[0] = cpu.fcw
    (<uint16_t*>image)[1] = cpu.fsw
    image[4] = <uint8_t>cpu.ftw
    (<uint16_t*>image)[3] = cpu.fop
    (<uint64_t*>image)[1] = cpu.fip
    (<uint64_t*>image)[2] = cpu.fdp
    (<uint32_t*>image)[6] = cpu.mxcsr
    (<uint32_t*>image)[7] = 0xFFFF
    for i in range(8):                   # ST(i), not the physical register
        memcpy(image + 32 + 16 * i, &cpu.st[(top + i) & 7], 10)
    memcpy(image + 160, cpu.xmm, 256)


cdef void fpu_from_image(CpuState* cpu, const uint8_t* image) noexcept nogil:
    cdef uint32_t i, top
    cpu.fcw = (<uint16_t*>image)[0] & 0x1F7F | 0x40
    cpu.fsw = (<uint16_t*>image)[1]
    cpu.ftw = image[4]
    cpu.fop = (<uint16_t*>image)[3] & 0x7FF
    cpu.fip = (<uint64_t*>image)[1]
    cpu.fdp = (<uint64_t*>image)[2]
    cpu.mxcsr = (<uint32_t*>image)[6] & 0xFFFF
    top = cpu.fsw >> 11 & 7
    for i in range(8):
        memset(&cpu.st[(top + i) & 7], 0, sizeof(St80))
        memcpy(&cpu.st[(top + i) & 7], image + 32 + 16 * i, 10)
    memcpy(cpu.xmm, image + 160, 256)


def fpu_image(Vcpu cpu not None):
    """The FXSAVE64 image of a vCPU that does not run: 512 bytes."""
    cdef uint8_t image[512]
    fpu_to_image(cpu.c, image)
    return (<char*>image)[:512]


def set_fpu_image(Vcpu cpu not None, bytes image not None):
    if len(image) != 512:
        raise ValueError(f"an FXSAVE image has 512 bytes, not {len(image)}")
    fpu_from_image(cpu.c, <const uint8_t*><char*>image)
