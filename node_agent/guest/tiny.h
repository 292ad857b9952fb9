/* Virga's tiny guest: the parts' faces, and the instructions that C has no words for. */
#ifndef VIRGA_TINY_H
#define VIRGA_TINY_H
#include <stdint.h>

static inline void outb(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline void outw(uint16_t port, uint16_t v) { __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port)); }
static inline void outl(uint16_t port, uint32_t v) { __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port)); }
static inline uint8_t inb(uint16_t port) { uint8_t v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint16_t inw(uint16_t port) { uint16_t v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint64_t rdtsc(void) { uint64_t v; __asm__ volatile("rdtsc" : "=A"(v)); return v; }
static inline void cpuid(uint32_t leaf, uint32_t out[4])
{
        __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(0));
}

/* console.c */
void console_init(void);
void put_char(char c);
void print(const char *text);
void print_number(uint32_t value);
void print_hex(uint32_t value);
int read_char(void);                             /* -1: nothing there */

/* time.c: a tick of TICK_HZ from the PIT, and microseconds from the TSC */
#define TICK_HZ 100
extern volatile uint32_t ticks;
void time_init(void);
void time_resume(void);                          /* program PIC and PIT again, after garbage went there */
uint32_t microseconds(uint64_t tsc_cycles);
const char *clock_source(void);

/* power.c */
void power_init(void);
int power_button_pressed(void);
void power_off(void) __attribute__((noreturn));
void debug_exit(uint32_t value) __attribute__((noreturn));
uint16_t power_port(void);                       /* PM1a_CNT: the port that garbage must spare */

/* trap.c */
void trap_init(void);
void triple_fault(void) __attribute__((noreturn));
uint32_t try_wrmsr(uint32_t msr, uint32_t low, uint32_t high);

/* abuse.c: what a hostile guest does */
void abuse_garbage(void);
void abuse_flood(uint32_t lines);
void abuse_jump(void);

#endif
