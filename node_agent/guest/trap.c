/* Exceptions and interrupts: the tick counts, a WRMSR that faults is skipped, all else is told and ends the guest. */
#include "tiny.h"

struct frame {
        uint32_t edi, esi, ebp, esp, ebx, edx, ecx, eax, vector, error, eip, cs, eflags;
};

struct gate {
        uint16_t low, selector, flags, high;
} __attribute__((packed));

extern uint32_t stub_table[48];
extern char try_wrmsr_insn[], try_wrmsr_fixup[];
static struct gate idt[48];
volatile uint32_t ticks;

void trap(struct frame *f)
{
        if (f->vector >= 32) {
                if (f->vector == 32)
                        ticks++;
                if (f->vector >= 40)
                        outb(0xa0, 0x20);
                outb(0x20, 0x20);
                return;
        }
        if (f->eip == (uint32_t)try_wrmsr_insn) {
                f->eip = (uint32_t)try_wrmsr_fixup;
                return;
        }
        print("# exception ");
        print_number(f->vector);
        print(" at ");
        print_hex(f->eip);
        print(" error ");
        print_hex(f->error);
        print("\n");
        debug_exit(0x7f);
}

void trap_init(void)
{
        struct {
                uint16_t limit;
                uint32_t base;
        } __attribute__((packed)) pointer = {sizeof idt - 1, (uint32_t)idt};
        for (int i = 0; i < 48; i++)
                idt[i] = (struct gate){(uint16_t)stub_table[i], 0x08, 0x8e00, (uint16_t)(stub_table[i] >> 16)};
        __asm__ volatile("lidt %0" : : "m"(pointer));
}
