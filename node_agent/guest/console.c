/* The first 16550A at 0x3f8: 115200 8N1, polled. The data sheet's register names. */
#include "tiny.h"

enum { COM1 = 0x3f8, RBR = 0, THR = 0, DLL = 0, DLM = 1, IER = 1, FCR = 2, LCR = 3, MCR = 4, LSR = 5 };
enum { LSR_DR = 0x01, LSR_THRE = 0x20, LCR_DLAB = 0x80, LCR_8N1 = 0x03 };

void console_init(void)
{
        outb(COM1 + IER, 0);
        outb(COM1 + LCR, LCR_DLAB | LCR_8N1);
        outb(COM1 + DLL, 1);
        outb(COM1 + DLM, 0);
        outb(COM1 + LCR, LCR_8N1);
        outb(COM1 + FCR, 0x07);                  /* FIFOs on and empty */
        outb(COM1 + MCR, 0x03);                  /* DTR, RTS */
}

void put_char(char c)
{
        if (c == '\n')
                put_char('\r');
        while (!(inb(COM1 + LSR) & LSR_THRE))
                ;
        outb(COM1 + THR, (uint8_t)c);
}

void print(const char *text)
{
        while (*text)
                put_char(*text++);
}

void print_number(uint32_t value)
{
        char digits[11];
        int n = 0;
        do
                digits[n++] = (char)('0' + value % 10);
        while (value /= 10);
        while (n)
                put_char(digits[--n]);
}

void print_hex(uint32_t value)
{
        print("0x");
        for (int shift = 28; shift >= 0; shift -= 4)
                put_char("0123456789abcdef"[(value >> shift) & 15]);
}

int read_char(void)
{
        return inb(COM1 + LSR) & LSR_DR ? inb(COM1 + RBR) : -1;
}
