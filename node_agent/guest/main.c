/* Virga's tiny guest: does what its command line says, and tells it on the serial port.
 *
 *   hello             print one line and power off
 *   count             count aloud, one number a line, until the power button (rate=N lines/s, default 20, at
 *                     most 100; until=N stops there and powers off; prefix writes "count N")
 *   dirty=MB          meanwhile write to that many MiB/s of pages, round and round span=MB (default 32) of memory;
 *                     each visit checks what the last one wrote
 *   work=N            N million rounds of an integer loop, then power off (or exit=N)
 *   idle              sleep until the power button
 *   echo              send each line that arrives back, until the power button
 *   spin              burn the processor with interrupts off
 *   exit=N            write N to the debug-exit port, at the end
 *   triplefault flood[=LINES] jump garbage       misbehave
 *
 * Every mode but spin and flood powers off by the ACPI button. Lines that are not data begin with '#'.
 */
#include "tiny.h"

struct multiboot_info {
        uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
};

extern char image_end[];
static const char *command_line = "";
static uint32_t memory_end;                      /* of the RAM that begins at 1 MiB */

/* The value of word or word=N; 0 when the word is absent. *value keeps its default where there is no "=N". */
static int option(const char *word, uint32_t *value)
{
        for (const char *at = command_line; *at;) {
                const char *w = word;
                while (*w && *at == *w)
                        at++, w++;
                if (!*w && (*at == '=' || *at == ' ' || !*at)) {
                        if (*at == '=' && value)
                                for (*value = 0, at++; *at >= '0' && *at <= '9'; at++)
                                        *value = *value * 10 + (uint32_t)(*at - '0');
                        return 1;
                }
                while (*at && *at != ' ')
                        at++;
                while (*at == ' ')
                        at++;
        }
        return 0;
}

/* Pages written per tick, one word each: the visit's number, checked at the next visit. */
struct dirtier {
        uint32_t first, pages, next, visit, per_tick, wrong;
};

static struct dirtier dirtier_new(void)
{
        uint32_t rate = 0, span = 32;
        option("dirty", &rate);
        option("span", &span);
        struct dirtier d = {.first = ((uint32_t)image_end + 0xfffff) & ~0xfffffu, .visit = 1};
        uint32_t room = memory_end > d.first ? (memory_end - d.first) >> 12 : 0;
        d.pages = span * 256 < room ? span * 256 : room;
        d.per_tick = d.pages ? rate * 256 / TICK_HZ : 0;
        for (uint32_t i = 0; d.per_tick && i < d.pages; i++)
                *(volatile uint32_t *)(d.first + (i << 12)) = 0;
        return d;
}

static void dirtier_step(struct dirtier *d)
{
        for (uint32_t i = 0; i < d->per_tick; i++) {
                volatile uint32_t *word = (volatile uint32_t *)(d->first + (d->next << 12));
                if (*word != d->visit - 1 && !d->wrong++) {
                        print("# memory wrong at ");
                        print_hex((uint32_t)word);
                        print("\n");
                }
                *word = d->visit;
                if (++d->next == d->pages) {
                        d->next = 0;
                        d->visit++;
                }
        }
}

static void tell_gap(const char *what, uint32_t us)
{
        print(what);
        print_number(us / 1000);
        put_char('.');
        put_char((char)('0' + us / 100 % 10));
        print(" ms\n");
}

static void wait_tick(uint32_t seen)
{
        for (;;) {
                __asm__ volatile("cli");
                if (ticks != seen)
                        break;
                __asm__ volatile("sti; hlt");    /* no interrupt slips between: STI's shadow (SDM 2B STI) */
        }
        __asm__ volatile("sti");
}

static void count(void)
{
        uint32_t rate = 20, until = 0, number = 0, largest = 0, due = 0;
        option("rate", &rate);
        option("until", &until);
        rate = rate < 1 ? 1 : rate > TICK_HZ ? TICK_HZ : rate;
        const char *prefix = option("prefix", 0) ? "count " : "";
        struct dirtier d = dirtier_new();
        uint64_t last = 0;
        while (!power_button_pressed() && (!until || number < until)) {
                wait_tick(ticks);
                uint64_t now = rdtsc();
                uint32_t gap = last ? microseconds(now - last) : 0;
                last = now;
                if (gap > largest && gap > 2000000 / TICK_HZ)
                        tell_gap("# largest gap ", gap);
                largest = gap > largest ? gap : largest;
                dirtier_step(&d);
                due += rate;
                if (due >= TICK_HZ) {
                        due -= TICK_HZ;
                        print(prefix);
                        print_number(++number);
                        print("\n");
                }
        }
        tell_gap("# counted; largest gap ", largest);
        if (d.wrong) {
                print("# memory wrong, pages: ");
                print_number(d.wrong);
                print("\n");
        }
}

/* Multiply, shift, add, load and store, with a branch that goes either way: what a benchmark counts. */
static void work(uint32_t millions)
{
        static uint32_t table[1024];
        uint32_t x = 0x9e3779b9, sum = 0;
        for (uint32_t round = 0; round < millions * 1000000; round++) {
                x = x * 1664525 + 1013904223;
                uint32_t *slot = &table[x >> 22];
                if (x & 0x10000)
                        *slot += x >> 8;
                else
                        sum ^= *slot << 1;
        }
        print("# worked: ");
        print_hex(sum);
        print("\n");
}

static void serve(int echo)
{
        char line[256];
        uint32_t used = 0;
        while (!power_button_pressed()) {
                wait_tick(ticks);
                for (int c = read_char(); c >= 0; c = read_char()) {
                        if (!echo)
                                continue;
                        if (c != '\r' && c != '\n' && used < sizeof line - 1) {
                                line[used++] = (char)c;
                                continue;
                        }
                        line[used] = 0;
                        used = 0;
                        print("echo: ");
                        print(line);
                        print("\n");
                }
        }
}

static void greet(void)
{
        print("# Virga tiny guest, ");
        print_number((memory_end + 0xfffff) >> 20);
        print(" MiB, clock from ");
        print(clock_source());
        print(", says: ");
        print(command_line);
        print("\n# ready\n");
}

static void misbehave(void)
{
        uint32_t lines = 0;
        if (option("triplefault", 0))
                triple_fault();
        if (option("jump", 0))
                abuse_jump();
        if (option("garbage", 0))
                abuse_garbage();
        if (option("flood", &lines))
                abuse_flood(lines);
        if (option("spin", 0))
                for (;;)
                        __asm__ volatile("cli; pause");
}

void guest_main(uint32_t magic, struct multiboot_info *info)
{
        uint32_t value = 0;
        console_init();
        if (magic == 0x2badb002) {
                if (info->flags & 1)
                        memory_end = 0x100000 + info->mem_upper * 1024;
                if (info->flags & 4)
                        command_line = (const char *)info->cmdline;
        }
        if (option("hello", 0))
                print("hello from a Virga guest\n");
        trap_init();
        time_init();
        power_init();
        if (!option("hello", 0))
                greet();
        misbehave();
        if (option("work", &value))
                work(value);
        else if (option("count", 0))
                count();
        else if (option("idle", 0) || option("echo", 0))
                serve(option("echo", 0));
        if (option("exit", &value))
                debug_exit(value);
        print("# power off\n");
        power_off();
}
