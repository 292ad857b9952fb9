/* What a hostile or broken guest does, for the tests that want to see its host unmoved. */
#include "tiny.h"

static uint32_t seed = 0x5eed1234;

static uint32_t random32(void)                   /* xorshift32, Marsaglia 2003 */
{
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        return seed;
}

/* Ports that would rightly end or reset us: i8042 and port 92 reset, CF9, ACPI's PM1 control, debug exit. */
static int ends_the_machine(uint32_t port)
{
        return (port >= 0x60 && port <= 0x64) || port == 0x92 || port == 0xf1 || (port >= 0xf1 && port <= 0xf7)
               || (port >= 0xcf6 && port <= 0xcf9) || (port + 4 > power_port() && port < power_port() + 2u)
               || port == 0xb2;
}

static void garbage_to_ports(void)
{
        for (uint32_t port = 0; port < 0x10000; port++) {
                if (ends_the_machine(port))
                        continue;
                outb((uint16_t)port, (uint8_t)random32());
                outw((uint16_t)port, (uint16_t)random32());
                outl((uint16_t)port, random32());
                (void)inw((uint16_t)port);
        }
}

static uint32_t garbage_to_msrs(uint32_t from, uint32_t to)
{
        uint32_t taken = 0;
        for (uint32_t msr = from; msr < to; msr++) {
                if (msr == 0x1b || msr == 0xc0000080 || (msr & 0xffffff00) == 0x4b564d00)
                        continue;                /* APIC base, EFER, and what hands KVM memory of ours to write to */
                taken += try_wrmsr(msr, random32(), random32());
        }
        return taken;
}

static void garbage_to_frames(void)              /* the 32-bit PCI window and the chip set, not our own local APIC */
{
        for (uint32_t page = 0xc0000; page < 0x100000; page++)
                if (page != 0xfee00)
                        *(volatile uint32_t *)(page << 12 | (random32() & 0xffc)) = random32();
}

void abuse_garbage(void)
{
        __asm__ volatile("cli");
        garbage_to_frames();
        uint32_t taken = garbage_to_msrs(0, 0x800) + garbage_to_msrs(0xc0000000, 0xc0000200);
        garbage_to_ports();
        console_init();
        time_resume();
        print("# garbage everywhere, ");
        print_number(taken);
        print(" MSRs took it; still here\n");
}

void abuse_flood(uint32_t lines)
{
        for (uint32_t i = 0; !lines || i < lines; i++)
                print("flood flood flood flood flood flood flood flood flood flood flood flood flood flood\n");
}

void abuse_jump(void)
{
        ((void (*)(void))0xd0000000)();
}
