/* Runs single instructions on this machine's own processor, in a process that may die of them.
 *
 * Owns:    the fixed addresses below, which harness.py and the guests under test share.
 * Never:   makes a system call but read, write and exit after start: a filter forbids the rest, because the
 *          instructions under test may be SYSCALL.
 *
 * argv[1]: number of an inherited memfd: struct Batch. One byte read from stdin: run cases [done, count); one byte
 * written to stdout: finished. Every case ends in a signal: INT3 behind the instruction, or the fault that it made.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define CODE 0x10000000UL        /* two pages, all INT3 but for the instruction, which stands at CODE_AT */
#define CODE_AT (CODE + 0x800)
#define DATA 0x20000000UL        /* two pages; the window lies across their border */
#define WINDOW 1024
#define WINDOW_AT (DATA + 0x1000 - WINDOW / 2)
#define ENTRY 0x30000000UL       /* the state while it is loaded, and the frame by which the case is entered */
#define CODE_BYTES 64

struct State {
    uint64_t gpr[16];            /* in encoding order: rax rcx rdx rbx rsp rbp rsi rdi r8.. */
    uint64_t rip;
    uint64_t rflags;
    uint8_t fx[512] __attribute__((aligned(16)));
    uint8_t window[WINDOW];
};

struct Case {
    uint8_t code[CODE_BYTES];
    uint32_t code_length;
    uint32_t vector;             /* out: 3 at rip = CODE_AT + code_length + 1 is success */
    uint64_t error;
    uint64_t address;            /* of a page fault */
    uint32_t bits;               /* 64; 32: flat; 16: code based at CODE, data and stack at DATA, limits 64 KiB */
    uint32_t reserved;
    struct State state;          /* in and out */
};

struct Batch {
    uint32_t count;
    uint32_t done;
    uint64_t reserved;
    struct Case cases[];
};

struct Frame {
    uint64_t rip, cs, rflags, rsp, ss, ds;
};

#define FRAME ((struct Frame *)(ENTRY + 0xf00))
#define LDT(entry) ((entry) << 3 | 7)

static sigjmp_buf back;
static struct Case *volatile running;
static struct State *const entry = (struct State *)ENTRY;

static void on_signal(int number, siginfo_t *info, void *context) {
    __asm__ volatile("pushq $2; popfq" ::: "cc");                /* AC and DF may have been the guest's */
    ucontext_t *uc = context;
    greg_t *g = uc->uc_mcontext.gregs;
    struct Case *c = running;
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    for (int i = 0; i < 16; i++)
        c->state.gpr[i] = g[order[i]];
    c->state.rip = g[REG_RIP];
    c->state.rflags = g[REG_EFL];
    memcpy(c->state.fx, uc->uc_mcontext.fpregs, 512);
    memset(c->state.fx + 464, 0, 48);                            /* software bytes, no state */
    memcpy(c->state.window, (void *)WINDOW_AT, WINDOW);
    c->vector = number == SIGSYS ? 255 : (uint32_t)g[REG_TRAPNO];
    c->error = g[REG_ERR];
    c->address = c->vector == 14 ? (uint64_t)info->si_addr : 0;
    siglongjmp(back, 1);
}

/* The whole state is loaded from the fixed address, rax last: no register is left for a pointer. IRETQ goes to code of
 * any width. */
__attribute__((naked, noreturn)) static void enter(void) {
    __asm__ volatile(
        "mov $0x30000000, %%eax\n"
        "fxrstor64 %c0(%%rax)\n"
        "mov 0xf28(%%rax), %%ds\n" "mov 0xf28(%%rax), %%es\n"
        "mov 8(%%rax), %%rcx\n" "mov 16(%%rax), %%rdx\n" "mov 24(%%rax), %%rbx\n" "mov 40(%%rax), %%rbp\n"
        "mov 48(%%rax), %%rsi\n" "mov 56(%%rax), %%rdi\n" "mov 64(%%rax), %%r8\n" "mov 72(%%rax), %%r9\n"
        "mov 80(%%rax), %%r10\n" "mov 88(%%rax), %%r11\n" "mov 96(%%rax), %%r12\n" "mov 104(%%rax), %%r13\n"
        "mov 112(%%rax), %%r14\n" "mov 120(%%rax), %%r15\n" "lea 0xf00(%%rax), %%rsp\n" "mov (%%rax), %%rax\n"
        "iretq\n"
        :: "i"(offsetof(struct State, fx)));
}

static void run_case(struct Case *c) {
    memcpy((void *)CODE_AT, c->code, c->code_length);
    memcpy((void *)WINDOW_AT, c->state.window, WINDOW);
    memcpy(entry, &c->state, sizeof *entry);
    FRAME->rip = c->bits == 16 ? CODE_AT - CODE : CODE_AT;
    FRAME->cs = c->bits == 64 ? 0x33 : c->bits == 32 ? 0x23 : LDT(0);
    FRAME->rflags = c->state.rflags;
    FRAME->rsp = c->state.gpr[4];
    FRAME->ss = c->bits == 16 ? LDT(1) : 0x2b;
    FRAME->ds = FRAME->ss;
    running = c;
    if (!sigsetjmp(back, 0))
        enter();
    memset((void *)CODE_AT, 0xCC, c->code_length);
}

static void make_segment(unsigned entry, unsigned long base, int contents) {
    struct user_desc segment = {.entry_number = entry, .base_addr = base, .limit = 0xFFFF, .contents = contents, .useable = 1};
    if (syscall(SYS_modify_ldt, 1, &segment, sizeof segment))
        _exit(4);
}

static void *map_at(uint64_t address, size_t size, int protection) {
    void *p = mmap((void *)address, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != (void *)address)
        _exit(2);
    return p;
}

static void forbid_system_calls(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        _exit(3);
}

int main(int argc, char **argv) {
    static uint8_t signal_stack[1 << 17];
    static const int caught[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
    int fd = 0;
    char byte;
    if (argc != 2)
        return 1;
    for (const char *p = argv[1]; *p; p++)
        fd = fd * 10 + (*p - '0');
    off_t size = lseek(fd, 0, SEEK_END);
    struct Batch *batch = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (batch == MAP_FAILED)
        return 1;
    memset(map_at(CODE, 0x2000, PROT_READ | PROT_WRITE | PROT_EXEC), 0xCC, 0x2000);
    map_at(DATA, 0x2000, PROT_READ | PROT_WRITE);
    map_at(ENTRY, 0x1000, PROT_READ | PROT_WRITE);
    make_segment(0, CODE, MODIFY_LDT_CONTENTS_CODE);
    make_segment(1, DATA, MODIFY_LDT_CONTENTS_DATA);
    sigaltstack(&stack, 0);
    for (unsigned i = 0; i < sizeof caught / sizeof *caught; i++)
        sigaction(caught[i], &action, 0);
    forbid_system_calls();
    while (read(0, &byte, 1) == 1) {
        while (batch->done < batch->count) {
            run_case(&batch->cases[batch->done]);
            batch->done++;
        }
        if (write(1, &byte, 1) != 1)
            return 1;
    }
    return 0;
}
