/* Time: PIT channel 0 through the 8259A pair gives TICK_HZ; the TSC, whose rate the hypervisor or CPUID tells
 * (or PIT channel 2, where neither does), measures what lies between two ticks.
 */
#include "tiny.h"

#define PIT_HZ 1193182u

enum { PIC1 = 0x20, PIC2 = 0xa0, PIT0 = 0x40, PIT2 = 0x42, PIT_COMMAND = 0x43, PORT_B = 0x61 };

static uint32_t tsc_khz;
static const char *source;

/* CPUID 0x40000010 EAX is the TSC's kHz for a hypervisor that tells; 0x15 is base and crystal (SDM 2A CPUID). */
static uint32_t khz_from_cpuid(void)
{
        uint32_t r[4];
        cpuid(1, r);
        if (r[2] & 1u << 31) {
                cpuid(0x40000000, r);
                if (r[0] >= 0x40000010 && r[0] < 0x40010000) {
                        cpuid(0x40000010, r);
                        if (r[0]) {
                                source = "hypervisor";
                                return r[0];
                        }
                }
        }
        cpuid(0, r);
        if (r[0] >= 0x15) {
                cpuid(0x15, r);
                if (r[0] && r[1] && r[2] / 1000) {
                        source = "cpuid";
                        return r[2] / 1000 * r[1] / r[0];
                }
        }
        return 0;
}

/* 10 ms of PIT channel 2, its output polled in port 0x61 bit 5. */
static uint32_t khz_from_pit(void)
{
        uint32_t count = PIT_HZ / 100, tries = 0;
        outb(PORT_B, (inb(PORT_B) & ~2u) | 1);
        outb(PIT_COMMAND, 0xb0);                 /* channel 2, both bytes, mode 0 */
        outb(PIT2, (uint8_t)count);
        outb(PIT2, (uint8_t)(count >> 8));
        uint64_t start = rdtsc();
        while (!(inb(PORT_B) & 0x20) && ++tries < 1u << 26)
                ;
        source = "pit";
        uint32_t cycles = (uint32_t)(rdtsc() - start);
        return cycles / 10 ? cycles / 10 : 1;
}

static void pic_init(void)
{
        outb(PIC1, 0x11);                        /* ICW1: edge, cascade, ICW4 follows */
        outb(PIC1 + 1, 0x20);                    /* ICW2: vectors 32-39 */
        outb(PIC1 + 1, 0x04);
        outb(PIC1 + 1, 0x01);
        outb(PIC2, 0x11);
        outb(PIC2 + 1, 0x28);                    /* vectors 40-47 */
        outb(PIC2 + 1, 0x02);
        outb(PIC2 + 1, 0x01);
        outb(PIC1 + 1, 0xfe);                    /* IRQ 0 alone */
        outb(PIC2 + 1, 0xff);
}

void time_resume(void)
{
        uint32_t divisor = PIT_HZ / TICK_HZ;
        pic_init();
        outb(PIT_COMMAND, 0x34);                 /* channel 0, both bytes, mode 2 */
        outb(PIT0, (uint8_t)divisor);
        outb(PIT0, (uint8_t)(divisor >> 8));
        __asm__ volatile("sti");
}

void time_init(void)
{
        tsc_khz = khz_from_cpuid();
        if (!tsc_khz)
                tsc_khz = khz_from_pit();
        time_resume();
}

/* cycles * 1000 / kHz without 64-bit division, which would want libgcc; saturates at an hour. */
uint32_t microseconds(uint64_t cycles)
{
        uint64_t limit = (uint64_t)tsc_khz * 3600000u;
        if (cycles > limit)
                return 3600000000u;
        uint32_t ms_quotient, rest;
        __asm__("divl %4" : "=a"(ms_quotient), "=d"(rest)
                : "a"((uint32_t)cycles), "d"((uint32_t)(cycles >> 32)), "r"(tsc_khz));
        uint64_t part = (uint64_t)rest * 1000u;
        uint32_t us, left;
        __asm__("divl %4" : "=a"(us), "=d"(left)
                : "a"((uint32_t)part), "d"((uint32_t)(part >> 32)), "r"(tsc_khz));
        return ms_quotient * 1000u + us;
}

const char *clock_source(void)
{
        return source;
}
