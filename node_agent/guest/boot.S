/* Virga's tiny guest: multiboot 1 entry, interrupt stubs, and what C cannot say.
 * Owns: the header, the stack, the IDT entries' code. Never: uses paging, SSE or any address above 4 GiB.
 * Entered in 32-bit protected mode, flat segments, interrupts off (Multiboot Specification 0.6.96 §3.2).
 */
#define MULTIBOOT_MAGIC  0x1BADB002
#define MULTIBOOT_FLAGS  0x00000002              /* bit 1: tell us the memory's size */

        .section .multiboot, "a"
        .align  4
        .long   MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

        .text
        .code32
        .globl  _start
_start: cli
        cld
        movl    $stack_top, %esp
        pushl   $0
        popfl
        lgdt    gdt_pointer                      /* the loader's GDT may lie anywhere, also in memory we use */
        ljmp    $0x08, $1f
1:      movw    $0x10, %cx
        movw    %cx, %ds
        movw    %cx, %es
        movw    %cx, %fs
        movw    %cx, %gs
        movw    %cx, %ss
        pushl   %ebx                             /* multiboot information */
        pushl   %eax                             /* 0x2BADB002 */
        call    guest_main
2:      cli
        hlt
        jmp     2b

/* Vectors 0-47: a uniform frame {edi esi ebp esp ebx edx ecx eax vector error eip cs eflags} for trap(). */
        .macro  stub number
        .globl  stub_\number
stub_\number:
        .if     !((\number == 8) || (\number >= 10 && \number <= 14) || (\number == 17) || (\number == 21))
        pushl   $0                               /* these push no error code (SDM 3A table 6-1) */
        .endif
        pushl   $\number
        jmp     enter_trap
        .endm

        .altmacro
        .set    i, 0
        .rept   48
        stub    %i
        .set    i, i + 1
        .endr

enter_trap:
        pushal
        pushl   %esp
        call    trap
        addl    $4, %esp
        popal
        addl    $8, %esp
        iret

/* uint32_t try_wrmsr(uint32_t msr, uint32_t low, uint32_t high): 1 when it went through, 0 when it faulted. */
        .globl  try_wrmsr, try_wrmsr_insn, try_wrmsr_fixup
try_wrmsr:
        movl    4(%esp), %ecx
        movl    8(%esp), %eax
        movl    12(%esp), %edx
try_wrmsr_insn:
        wrmsr
        movl    $1, %eax
        ret
try_wrmsr_fixup:
        xorl    %eax, %eax
        ret

/* A fault with no usable IDT is a triple fault. */
        .globl  triple_fault
triple_fault:
        lidt    empty_idt
        ud2

        .section .rodata
        .align  4
empty_idt:
        .word   0
        .long   0
        .globl  stub_table
        .align  4
        .macro  entry number
        .long   stub_\number
        .endm
stub_table:
        .set    i, 0
        .rept   48
        entry   %i
        .set    i, i + 1
        .endr

        .data
        .align  8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff               /* 0x08: code, 4 GiB */
        .quad   0x00cf93000000ffff               /* 0x10: data, 4 GiB */
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .bss
        .align  16
        .skip   16384
stack_top:
        .section .note.GNU-stack, "", @progbits
