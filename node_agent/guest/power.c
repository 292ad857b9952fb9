/* Power: the button and S5 by ACPI (6.5 §4.8.3), found through the tables as an operating system finds them;
 * the debug-exit port 0xf4.
 */
#include "tiny.h"

enum { PWRBTN = 1 << 8, SCI_EN = 1, SLP_EN = 1 << 13, DEBUG_EXIT = 0xf4 };

static uint16_t pm1_status, pm1_enable, pm1_control;
static uint8_t slp_typ;

static uint32_t le32(uint32_t at) { return *(volatile uint32_t *)at; }
static uint8_t u8(uint32_t at) { return *(volatile uint8_t *)at; }

static int sums_to_zero(uint32_t at, uint32_t size)
{
        uint8_t sum = 0;
        while (size--)
                sum = (uint8_t)(sum + u8(at++));
        return sum == 0;
}

static uint32_t find_rsdp(uint32_t from, uint32_t to)
{
        for (uint32_t at = from & ~15u; at + 20 <= to; at += 16)
                if (le32(at) == 0x20445352 && le32(at + 4) == 0x20525450 && sums_to_zero(at, 20))
                        return at;
        return 0;
}

/* The table of that signature below the RSDT (4-byte entries) or the XSDT (8). */
static uint32_t find_table(uint32_t rsdp, uint32_t signature)
{
        uint32_t root = le32(rsdp + 16), entry = 4;
        if (u8(rsdp + 15) >= 2 && (!root || le32(rsdp + 24))) {
                root = le32(rsdp + 24);
                entry = 8;
        }
        if (!root)
                return 0;
        for (uint32_t at = root + 36; at + entry <= root + le32(root + 4); at += entry)
                if (le32(le32(at)) == signature)
                        return le32(at);
        return 0;
}

/* \_S5 is Name(_S5_, Package {SLP_TYPa, …}): 08 ['\'] "_S5_" 12 PkgLength NumElements (0A byte | 00 | 01) */
static void read_s5(uint32_t dsdt)
{
        for (uint32_t at = dsdt + 36; at + 12 < dsdt + le32(dsdt + 4); at++) {
                if (le32(at) != 0x5f35535f || u8(at + 4) != 0x12)
                        continue;
                uint32_t value = at + 5 + (u8(at + 5) >> 6) + 2;
                slp_typ = u8(value) == 0x0a ? u8(value + 1) : u8(value);
                return;
        }
}

void power_init(void)
{
        uint32_t ebda = (uint32_t)*(volatile uint16_t *)0x40e << 4;
        uint32_t rsdp = ebda >= 0x80000 && ebda < 0xa0000 ? find_rsdp(ebda, ebda + 1024) : 0;
        if (!rsdp)
                rsdp = find_rsdp(0xe0000, 0x100000);
        uint32_t fadt = rsdp ? find_table(rsdp, 0x50434146) : 0;
        if (!fadt)
                return;
        uint32_t length = le32(fadt + 4), event = le32(fadt + 56);
        pm1_control = (uint16_t)le32(fadt + 64);
        if (!event && length >= 184) {           /* only the X_ fields are filled in */
                event = le32(fadt + 152);
                pm1_control = (uint16_t)le32(fadt + 176);
        }
        pm1_status = (uint16_t)event;
        pm1_enable = (uint16_t)(event + u8(fadt + 88) / 2);
        uint32_t dsdt = le32(fadt + 40);
        read_s5(!dsdt && length >= 148 ? le32(fadt + 140) : dsdt);
        if (le32(fadt + 48) && !(inw(pm1_control) & SCI_EN))
                outb((uint16_t)le32(fadt + 48), u8(fadt + 52));
        outw(pm1_status, PWRBTN);
        outw(pm1_enable, PWRBTN);
}

int power_button_pressed(void)
{
        return pm1_status && inw(pm1_status) & PWRBTN;
}

uint16_t power_port(void)
{
        return pm1_control;
}

void power_off(void)
{
        if (pm1_control)
                outw(pm1_control, (uint16_t)(slp_typ << 10 | SLP_EN));
        for (;;)
                __asm__ volatile("cli; hlt");
}

void debug_exit(uint32_t value)
{
        outl(DEBUG_EXIT, value);
        power_off();
}
