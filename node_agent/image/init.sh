#!/bin/sh
# First process of Virga's Debian guest: mounts, drivers for the devices that are there, the power button, a shell.
export PATH=/bin HOME=/root TERM=vt100
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs run /run
echo 3 > /proc/sys/kernel/printk

name=virga leave=
for word in $(cat /proc/cmdline); do
    case $word in
    hostname=*) name=${word#hostname=} ;;
    virga.poweroff) leave=yes ;;
    esac
done
hostname "$name"
ifconfig lo up 2>/dev/null

# Drivers by what the buses announce, then by what those announce in turn (virtio devices appear behind PCI).
modprobe -q -a button evdev 2>/dev/null
for bus in pci virtio; do
    aliases=$(cat /sys/bus/$bus/devices/*/modalias 2>/dev/null | sort -u)
    [ -z "$aliases" ] || modprobe -q -a $aliases 2>/dev/null
done

shut_down() {
    sync
    umount -a -r 2>/dev/null
    poweroff -f
}

# The ACPI power button is an input device; 24 bytes are one struct input_event.
for input in /sys/class/input/event*; do
    case $(cat "$input/device/name" 2>/dev/null) in
    "Power Button") (dd if="/dev/input/${input##*/}" of=/dev/null bs=24 count=1 2>/dev/null && shut_down) & ;;
    esac
done
trap shut_down USR2 TERM

echo "virga: user space is up"
[ -z "$leave" ] || shut_down
# Not with &: a shell started so ignores Ctrl-C, and so does all that it starts.
while :; do
    start-stop-daemon -S -b -m -p /run/shell.pid -x /bin/setsid -- cttyhack sh -l
    while kill -0 "$(cat /run/shell.pid)" 2>/dev/null; do sleep 1 & wait $!; done
done
