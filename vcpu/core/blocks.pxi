# Owner: CORE. Included by vcpu/_core.pyx: the cache of decoded blocks of one vCPU.
#
# Owns:    building blocks, finding them by (host address of the first byte, mode key), dropping them when their bytes change.
# Never:   frees a block by itself: the arena is emptied whole, and only by the loop, when no handler of it is on the stack.
# Threads: the vCPU's own; others ask through ATTN_CODE_CHANGED.
#
# A dropped block stays where it is with every op's handler overwritten by op_stale, which goes on by a fresh lookup at
# that op's rip. So a store into the block that is running takes effect at the very next instruction, and links into
# dropped blocks need no search.

from vcpu.core.engine cimport *

cdef enum:
    TABLE_BITS = 16
    TABLE_SIZE = 1 << TABLE_BITS
    MAX_OPS = 2 * BLOCK_INSNS + 4
    PROT_READ_ = 1
    PROT_WRITE_ = 2
    MAP_PRIVATE_ANONYMOUS_NORESERVE = 0x4022

cdef uint64_t ARENA_BYTES = 64 << 20
cdef uint64_t ARENA_START = 8 << 20          # most code of a boot runs once: a small arena, emptied now and then, loses little
cdef uint64_t ARENA_SOON = 100000000         # emptied again within so many instructions: the working set is larger


cdef inline uint32_t block_hash(const uint8_t* host, uint32_t key) noexcept nogil:
    cdef uint64_t h = (<uint64_t>host ^ <uint64_t>key << 40) * 0x9E3779B97F4A7C15ULL
    return <uint32_t>(h >> (64 - TABLE_BITS))


cdef inline CodeCache* code_cache(CpuState* cpu) noexcept nogil:
    return <CodeCache*>cpu.code


cdef void* map_memory(uint64_t size) noexcept nogil:
    """Zeroed memory that costs nothing until it is touched; NULL: none."""
    cdef void* p = mmap(NULL, size, PROT_READ_ | PROT_WRITE_, MAP_PRIVATE_ANONYMOUS_NORESERVE, -1, 0)
    return NULL if p == MAP_FAILED else p


cdef bint code_cache_init(CpuState* cpu, Space* space) noexcept nogil:
    cdef CodeCache* cache = <CodeCache*>calloc(1, sizeof(CodeCache))
    if cache == NULL:
        return False
    cpu.code = cache
    cache.arena_size = ARENA_BYTES
    cache.arena_limit = ARENA_START
    cache.table = <Block**>map_memory(TABLE_SIZE * sizeof(Block*))
    cache.pages = <Block**>map_memory(space.frames * sizeof(Block*))
    cache.arena = <uint8_t*>map_memory(ARENA_BYTES)
    return cache.table != NULL and cache.pages != NULL and cache.arena != NULL


cdef void code_cache_free(CpuState* cpu, uint64_t frames) noexcept nogil:
    cdef CodeCache* cache = code_cache(cpu)
    if cache == NULL:
        return
    if cache.table != NULL:
        munmap(cache.table, TABLE_SIZE * sizeof(Block*))
    if cache.pages != NULL:
        munmap(cache.pages, frames * sizeof(Block*))
    if cache.arena != NULL:
        munmap(cache.arena, cache.arena_size)
    free(cache)
    cpu.code = NULL


cdef inline Block* find_block(CpuState* cpu, const uint8_t* host, uint32_t key) noexcept nogil:
    cdef Block* block = code_cache(cpu).table[block_hash(host, key)]
    while block != NULL and (block.host != host or block.mode_key != key):
        block = block.hash_next
    return block


# ------------------------------------------------------------------ building

cdef inline void link_init(Link* link, int64_t delta, bint crosses) noexcept nogil:
    link.fn = op_link_far if crosses else op_link
    link.target = <uint64_t>link
    link.delta = delta
    link.far_op = 0
    link.far_host = NULL


cdef Block* build_block(CpuState* cpu, uint8_t* host, gpa_t gpa, uint64_t linear, uint32_t key) noexcept nogil:
    """Decode from host on. NULL: a fetch from the second page faulted, and was delivered."""
    cdef Op ops[132]
    cdef Decoder d
    cdef RowRecord* row = NULL
    cdef uint32_t n_ops = 0, n_insns = 0, n_bytes = 0, made, before = 0
    cdef uint32_t limit = 1 if key & KEY_STEP else BLOCK_INSNS
    cdef uint32_t in_page = PAGE_SIZE - (<uint32_t>linear & (PAGE_SIZE - 1))
    cdef Block* block
    cdef uint8_t* host2 = NULL
    cdef uint64_t gpa2 = 0
    cdef bint ends = False
    space_decoding(cpu, gpa >> PAGE_SHIFT)
    while n_insns < limit and not ends and n_bytes < in_page:
        memset(&d, 0, sizeof(Decoder))
        d.cpu = cpu
        d.next = host + n_bytes
        d.page_end = host + in_page
        d.linear = linear + n_bytes
        d.may_cross = n_insns == 0
        d.key = key
        d.segment = -1
        made = decode_insn(&d, &ops[n_ops], n_bytes, n_insns, &row)
        if d.error == DECODE_FAULT:
            return NULL
        if d.error == DECODE_PAGE:
            break
        if made == 0:
            fault_op(&ops[n_ops], &d, n_bytes, n_insns)
            made = 1
            ends = True
        elif row.flags & ROW_ENDS:
            ends = True
            if before != 0:
                fuse(&ops[n_ops - 1], before, &d)
        before = d.handler if not d.lock else 0
        # NOPs at a block's head (ENDBR, room for tracers) count, and that is all they do. Further on they stay: a store
        # before them may change them
        if n_ops != 0 or ops[0].fn != fn_nop:
            n_ops += made
        n_insns += 1
        n_bytes += d.count
        host2 = d.host2
        gpa2 = d.gpa2
        if host2 != NULL:
            break
    if not ends:
        end_op(&ops[n_ops], key, n_bytes, n_insns)
        n_ops += 1
    block = new_block(cpu, ops, n_ops)
    block.host = host
    block.mode_key = key
    block.n_insns = <uint16_t>n_insns
    block.n_bytes = <uint16_t>n_bytes
    block.crosses = host2 != NULL
    block.host2 = host2
    block.gfn[0] = gpa >> PAGE_SHIFT
    block.gfn[1] = gpa2 >> PAGE_SHIFT
    block_links(block)
    block_enter(cpu, block)
    return block


cdef void fault_op(Op* op, Decoder* d, uint32_t offset, uint32_t index) noexcept nogil:
    memset(op, 0, sizeof(Op))
    op.fn = op_gp if d.error == DECODE_GP else op_ud
    op.offset = <uint16_t>offset
    op.index = <uint16_t>index
    op.length = <uint8_t>d.count
    op.opcode = 0xFFFF


cdef void end_op(Op* op, uint32_t key, uint32_t offset, uint32_t index) noexcept nogil:
    """Behind the last instruction of a block that goes on with the next one."""
    memset(op, 0, sizeof(Op))
    op.fn = op_end if key & KEY_CODE == KEY_CODE64 or key & KEY_FLAT else op_end_legacy
    op.offset = <uint16_t>offset
    op.index = <uint16_t>index
    op.opcode = 0xFFFF


cdef Block* new_block(CpuState* cpu, Op* ops, uint32_t n_ops) noexcept nogil:
    """Room in the arena; there always is: the loop empties it early enough."""
    cdef CodeCache* cache = code_cache(cpu)
    cdef Block* block = <Block*>(cache.arena + cache.arena_used)
    cache.arena_used += (sizeof(Block) + (n_ops + 2) * sizeof(Op) + 15) & ~<uint64_t>15
    cache.decoded += 1
    memset(block, 0, sizeof(Block))
    memcpy(block.ops, ops, n_ops * sizeof(Op))
    block.n_ops = <uint16_t>n_ops
    return block


cdef void block_links(Block* block) noexcept nogil:
    """The two links behind the ops: where the last op's distance leads, and the next instruction."""
    cdef Op* last = &block.ops[block.n_ops - 1]
    cdef int64_t behind = <int64_t>last.offset + last.length
    cdef Link* taken = <Link*>(last + 1)
    link_init(taken, behind + <int64_t>last.imm, block.crosses)
    link_init(<Link*>(last + 2), behind, block.crosses)


cdef void block_enter(CpuState* cpu, Block* block) noexcept nogil:
    """Into the table and the lists of its pages."""
    cdef CodeCache* cache = code_cache(cpu)
    cdef uint32_t slot = block_hash(block.host, block.mode_key)
    cdef uint32_t i
    block.hash_next = cache.table[slot]
    cache.table[slot] = block
    for i in range(2 if block.crosses else 1):
        if block.gfn[i] >= cpu.space.frames:     # nobody's frame: all ones for ever
            continue
        block.page_next[i] = cache.pages[block.gfn[i]]
        cache.pages[block.gfn[i]] = block


# ------------------------------------------------------------------ dropping

cdef void page_remove(CpuState* cpu, Block* block, uint64_t gfn) noexcept nogil:
    cdef Block** p
    if gfn >= cpu.space.frames:
        return
    p = &code_cache(cpu).pages[gfn]
    while p[0] != NULL:
        if p[0] == block:
            p[0] = block.page_next[0 if block.gfn[0] == gfn else 1]
            break
        p = &p[0].page_next[0 if p[0].gfn[0] == gfn else 1]
    if code_cache(cpu).pages[gfn] == NULL:
        space_code_gone(cpu, gfn)


cdef void drop_block(CpuState* cpu, Block* block) noexcept nogil:
    cdef Block** p = &code_cache(cpu).table[block_hash(block.host, block.mode_key)]
    cdef uint32_t i
    while p[0] != NULL and p[0] != block:
        p = &p[0].hash_next
    if p[0] == block:
        p[0] = block.hash_next
    page_remove(cpu, block, block.gfn[0])
    if block.crosses and block.gfn[1] != block.gfn[0]:
        page_remove(cpu, block, block.gfn[1])
    for i in range(block.n_ops):
        block.ops[i].fn = op_stale
    code_cache(cpu).dropped += 1


cdef bint block_touches(Block* block, uint64_t gfn, uint32_t first, uint32_t end) noexcept nogil:
    """Has the block bytes in [first, end) of the frame?"""
    cdef uint32_t start = <uint32_t>(<uint64_t>block.host & (PAGE_SIZE - 1))
    cdef uint32_t stop = start + block.n_bytes
    if block.gfn[0] == gfn and start < end and first < (stop if stop < PAGE_SIZE else PAGE_SIZE):
        return True
    return block.crosses and block.gfn[1] == gfn and first < stop - PAGE_SIZE


cdef void drop_range(CpuState* cpu, uint64_t gfn, uint32_t first, uint32_t end) noexcept nogil:
    cdef Block* block
    cdef Block* following
    if gfn >= cpu.space.frames:
        return
    block = code_cache(cpu).pages[gfn]
    if block == NULL:
        space_code_gone(cpu, gfn)
    while block != NULL:
        following = block.page_next[0 if block.gfn[0] == gfn else 1]
        if block_touches(block, gfn, first, end):
            drop_block(cpu, block)
        block = following


cdef void drop_all(CpuState* cpu) noexcept nogil:
    """Every block. Only the loop calls it: the arena starts anew."""
    cdef CodeCache* cache = code_cache(cpu)
    cdef uint64_t gfn
    for gfn in range(cpu.space.frames):
        if cache.pages[gfn] != NULL:
            cache.pages[gfn] = NULL
            space_code_gone(cpu, gfn)
    memset(cache.table, 0, TABLE_SIZE * sizeof(Block*))
    cache.arena_used = 0
    cache.flushed += 1


cdef void make_room(CpuState* cpu) noexcept nogil:
    """Before a block is built: empty the arena if one may not fit any more."""
    cdef CodeCache* cache = code_cache(cpu)
    if cache.arena_used + MAX_OPS * sizeof(Op) + 4096 <= cache.arena_limit:
        return
    if cpu.retired - cache.emptied_at < ARENA_SOON and cache.arena_limit < cache.arena_size:
        cache.arena_limit *= 2
        return
    cache.emptied_at = cpu.retired
    drop_all(cpu)


cdef void code_written(CpuState* cpu, gpa_t gpa, uint32_t size) noexcept nogil:
    """This vCPU stored [gpa, gpa + size), within a page, into a frame that holds decoded code."""
    cdef uint32_t first = <uint32_t>gpa & (PAGE_SIZE - 1)
    drop_range(cpu, gpa >> PAGE_SHIFT, first, first + size)
    space_wrote_code(cpu.space, gpa >> PAGE_SHIFT, cpu)


cdef void take_changed_code(CpuState* cpu) noexcept nogil:
    """ATTN_CODE_CHANGED: other vCPUs or devices changed frames that we decoded from."""
    cdef uint64_t gfns[32]
    cdef uint32_t count = code_queue_take(cpu, gfns)
    cdef uint32_t i
    if count == CODE_QUEUE_ALL:
        drop_all(cpu)
        return
    for i in range(count):
        drop_range(cpu, gfns[i], 0, PAGE_SIZE)
