# cython: language_level=3
"""What decoder and block builder share: the packed rows, and an instruction being taken apart. Owner: CORE.

Owns:    RowRecord, the mirror of RECORD in vcpu/isa/table.py; Decoder.
Never:   behaviour.
Threads: the tables are read only once the handlers are registered; a Decoder lives on its vCPU's stack.
"""
from vcpu.core.state cimport CpuState, uint8_t, uint16_t, uint32_t, uint64_t, int64_t

cdef enum:
    MAX_HANDLERS = 16384
    MAX_INSN = 15
    # RowRecord.prefix
    PREFIX_ANY = 0
    PREFIX_NP = 1
    PREFIX_66 = 2
    PREFIX_F3 = 3
    PREFIX_F2 = 4
    PREFIX_NFX = 5
    # .flags
    ROW_ENDS = 1
    ROW_LOCK = 2
    ROW_SWAP = 4
    ROW_CPL0 = 8
    ROW_MODRM = 16
    ROW_WRITE = 32
    ROW_NO_EA = 64
    # .reg
    REG_NONE = 0
    REG_GPR8 = 1
    REG_GPR = 2
    REG_RAW = 3
    # .rm
    RM_NONE = 0
    RM_GPR8 = 1
    RM_GPR = 2
    RM_RAW = 3
    RM_OPCODE8 = 4
    RM_OPCODE = 5
    RM_ACC = 6
    RM_STI = 7
    # .size
    SIZE_V = 0
    SIZE_D64 = 1
    SIZE_F64 = 2
    SIZE_B = 3
    # .unit
    UNIT_X87 = 1
    UNIT_MMX = 2
    UNIT_SSE = 3
    UNIT_WAIT = 4
    # .imm
    IMM_IB = 1
    IMM_IBS = 2
    IMM_IW = 3
    IMM_IZ = 4
    IMM_IV = 5
    IMM_IWIB = 6
    IMM_PTR = 7
    IMM_ONE = 8
    IMM_MOFFS = 9
    IMM_CB = 10
    IMM_CZ = 11
    IMM_ID = 12
    IMM_IBIB = 13
    MEMORY_BY_SIZE = 0xFFFF
    # Decoder.error
    DECODE_OK = 0
    DECODE_UD = 1                # no such instruction
    DECODE_GP = 2                # longer than 15 bytes
    DECODE_PAGE = 3              # goes on in the next page, which may not be looked at now
    DECODE_FAULT = 4             # the fetch faulted and was delivered

cdef packed struct RowRecord:
    uint8_t prefix
    uint8_t w
    uint8_t opsize
    uint8_t adsize
    uint8_t reg_mask
    uint8_t rm_mask
    uint8_t mod
    uint8_t modes
    uint8_t reg
    uint8_t rm
    uint8_t size
    uint8_t unit
    uint16_t imm
    uint16_t memory
    uint16_t handlers[8]
    char name[8]
    uint32_t flags
    uint32_t number

cdef struct Decoder:
    CpuState* cpu
    const uint8_t* next          # next byte
    const uint8_t* page_end
    uint64_t linear              # of the instruction
    uint32_t count               # bytes taken
    uint32_t error
    bint may_cross               # the next page may be fetched from
    uint8_t* host2               # set once it was
    uint64_t gpa2
    uint32_t key
    # prefixes
    bint opsize66
    bint adsize67
    bint lock
    uint8_t rep                  # 0, 0xF2, 0xF3: the last one counts
    uint8_t rex
    int segment                  # override, or -1
    # opcode and operands
    uint8_t map
    uint8_t opcode
    bint has_modrm
    uint8_t modrm
    uint8_t opsize
    uint8_t adsize
    uint8_t base
    uint8_t index
    uint8_t scale
    bint rip_relative
    int64_t disp
    uint64_t imm
    uint32_t handler             # number of the handler found; 0: none, or a fault
