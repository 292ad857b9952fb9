"""Small multiboot programs, assembled when a test wants them."""

from __future__ import annotations

import subprocess
from pathlib import Path

PROLOGUE = """
.set MAGIC, 0x1BADB002
.section .text
.global _start
.align 4
.long MAGIC, 3, -(MAGIC + 3)
.macro outb port, value
    mov $\\port, %dx
    mov $\\value, %al
    out %al, %dx
.endm
.macro print text
    mov $1f, %esi
    jmp 2f
1:  .asciz "\\text"
2:  call puts
.endm
puts:
    mov $0x3F8, %dx
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  ret
power_off:
    mov $0x604, %dx
    mov $0x2000, %ax
    out %ax, %dx
    hlt
_start:
    mov $0x90000, %esp
"""

HELLO = "print \"hello\"; jmp power_off"

DEBUG_EXIT = "mov $0x15, %eax; out %eax, $0xF4; hlt"

TRIPLE_FAULT = "lidt zero; ud2\nzero: .quad 0"

SPIN = "print \"spinning\"; spin: jmp spin"

SLEEP = "print \"sleeping\"; cli; sleep: hlt; jmp sleep"

# CMOS byte 0x40 outlives a reset
RESET_ONCE = """
    mov $0x40, %al; out %al, $0x70; in $0x71, %al
    test %al, %al
    jnz again
    mov $0x40, %al; out %al, $0x70; mov $1, %al; out %al, $0x71
    print "first "
    mov $0xCF9, %dx; mov $6, %al; out %al, %dx
1:  hlt; jmp 1b
again:
    print "second"
    jmp power_off
"""

# PIT at 1 kHz through the PIC; a letter each tick, {ticks} of them
TICKS = """
    mov $handler, %eax
    mov $idt + 8 * 0x20, %edi
    mov %ax, (%edi); mov %cs, 2(%edi); movw $0x8E00, 4(%edi)
    shr $16, %eax; mov %ax, 6(%edi)
    lidt idtr
    outb 0x20, 0x11; outb 0x21, 0x20; outb 0x21, 4; outb 0x21, 1; outb 0x21, 0xFE
    outb 0x43, 0x34; outb 0x40, 0xA9; outb 0x40, 0x04
    xor %ebx, %ebx
    sti
1:  hlt
    cmp ${ticks}, %ebx
    jb 1b
    cli
    print "!"
    jmp power_off
handler:
    push %eax; push %edx
    mov %bl, %al; and $15, %al; add $65, %al
    mov $0x3F8, %dx; out %al, %dx
    inc %ebx
    mov $0x20, %al; out %al, $0x20
    pop %edx; pop %eax
    iret
idtr: .word 0x7FF; .long idt
.bss
.align 8
idt: .skip 0x800
.text
"""

# ACPI's power button by polling
BUTTON = """
    mov $0x602, %dx; mov $0x100, %ax; out %ax, %dx
    print "waiting"
    mov $0x600, %dx
1:  in %dx, %ax
    test $0x100, %ax
    jz 1b
    jmp power_off
"""

ECHO = """
    print "ready"
1:  mov $0x3FD, %dx; in %dx, %al; test $1, %al; jz 1b
    mov $0x3F8, %dx; in %dx, %al
    cmp $'q', %al
    je power_off
    out %al, %dx
    jmp 1b
"""


def build(folder: Path, source: str) -> str:
    """An ELF file from a program's text; its path."""
    (folder / "program.S").write_text(PROLOGUE + source.replace("; ", "\n") + "\n")
    subprocess.run(["as", "--32", "program.S", "-o", "program.o"], cwd=folder, check=True)
    subprocess.run(["ld", "--no-warn-rwx-segments", "-m", "elf_i386", "-Ttext=0x100000", "-N", "program.o", "-o", "program.elf"], cwd=folder,
                   check=True)
    return str(folder / "program.elf")
