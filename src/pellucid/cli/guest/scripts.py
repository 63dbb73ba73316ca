"""The /init scripts of the default guest, for busybox's sh.

INTERACTIVE gives a person a shell. SELF_TEST exercises what a guest's user space needs (processes, files, pipes,
signals, floating point), says the result on one line and powers off. QUIET_POWEROFF only starts and stops.
Lines that a program looks for on the console: BANNER, PASSED, FAILED.
"""

BANNER = "Pellucid: userspace reached"
PASSED = "Pellucid: self-test passed"
FAILED = "Pellucid: self-test failed"

_MOUNT = f"""\
#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
echo "{BANNER}"
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM="${{TERM:-linux}}"
"""

# The shell gets the console as its controlling terminal, so that Ctrl-C and job control work; leaving it powers off.
INTERACTIVE = (
    _MOUNT
    + """\
hostname pellucid
mount -t tmpfs tmp /tmp
echo "$(uname -srm), busybox shell; 'poweroff -f' or leaving the shell ends the machine"
cd /root
setsid cttyhack sh -l
poweroff -f
"""
)

QUIET_POWEROFF = _MOUNT + "poweroff -f\n"

SELF_TEST = (
    _MOUNT
    + """\
failures=0
check() {  # check NAME EXPECTED ACTUAL
    if [ "$2" = "$3" ]; then
        echo "ok: $1"
    else
        echo "not ok: $1: expected '$2', got '$3'"
        failures=$((failures + 1))
    fi
}
mount -t tmpfs tmp /tmp
cd /tmp || exit 1

# Processes: fork, exec, wait and exit codes; many short ones; a subshell's variables stay its own.
sh -c 'exit 42'; check "exit status" 42 $?
count=0; for i in $(seq 1 50); do if /bin/true; then count=$((count + 1)); fi; done
check "fifty children" 50 $count
v=outer; (v=inner; : $v); check "subshell isolation" outer $v
(sleep 0; exit 7) & wait $!; check "background child" 7 $?

# Files: write, append, copy, rename, link, remove, a large file and its checksum, directory trees.
echo one > a; echo two >> a; check "append" "one two" "$(tr '\\n' ' ' < a | sed 's/ $//')"
cp a b && mv b c && ln c d && ln -s c e && rm c
check "hard link outlives its name" two "$(tail -n 1 d)"
check "dangling symlink" no "$([ -e e ] && echo yes || echo no)"
dd if=/dev/zero of=zeros bs=1024 count=1024 2> /dev/null
check "size of a megabyte" 1048576 "$(stat -c %s zeros)"
check "sha256 of a megabyte" 30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58 \\
    "$(sha256sum zeros | cut -d' ' -f1)"
check "md5 of text" 900150983cd24fb0d6963f7d28e17f72 "$(printf abc | md5sum | cut -d' ' -f1)"
mkdir -p tree/one/two && touch tree/one/two/leaf
check "find in a tree" tree/one/two/leaf "$(find tree -type f)"
gzip -c zeros | gunzip -c | cmp - zeros; check "gzip round trip" 0 $?

# Pipes: long chains, data larger than the pipe's buffer, a fifo between processes, a reader that leaves early.
check "pipe chain" 5050 "$(seq 1 100 | awk '{s += $1} END {print s}')"
check "bytes through a pipe" 300000 "$(dd if=/dev/zero bs=1000 count=300 2> /dev/null | cat | wc -c)"
mkfifo fifo; echo through > fifo & read -r line < fifo; check "fifo" through "$line"
check "early reader" 1 "$(yes 1 | head -n 1)"
check "sorted" "a b c" "$(printf 'c\\na\\nb\\n' | sort | tr '\\n' ' ' | sed 's/ $//')"

# Signals: a handler, a default action seen by the parent, an ignored signal, a timer.
got=none; trap 'got=usr1' USR1; kill -USR1 $$; check "signal handler" usr1 $got
sleep 100 & kill -TERM $!; wait $!; check "killed child's status" 143 $?
sh -c 'trap "" TERM; kill -TERM $$; exit 3'; check "ignored signal" 3 $?
timeout 1 sleep 100; check "timer" 143 $?

# Floating point: exact sums, rounding, series and iterations (Debian's busybox awk has no sqrt() or sin()), extremes.
check "sum of quarters" 25 "$(awk 'BEGIN {for (i = 0; i < 100; i++) s += 0.25; print s}')"
check "root of two by Newton" 1.4142135623731 "$(awk 'BEGIN {x = 1; for (i = 0; i < 6; i++) x = (x + 2 / x) / 2
    printf "%.13f", x}')"
check "pi by Machin" 3.14159265358979 "$(awk 'function arccot(n,  i, s, t) {t = 1 / n
    for (i = 1; i < 40; i += 2) {s += t / i; t = -t / (n * n)} return s}
    BEGIN {printf "%.14f", 16 * arccot(5) - 4 * arccot(239)}')"
check "e by its series" 2.71828182845905 "$(awk 'BEGIN {t = 1; for (i = 1; i < 25; i++) {s += t; t /= i}
    printf "%.14f", s}')"
check "sine by its series" 0.84147098480790 "$(awk 'BEGIN {t = 1; for (i = 1; i < 25; i += 2) {s += t
    t = -t / ((i + 1) * (i + 2))} printf "%.14f", s}')"
check "harmonic sum" 9.78760603604435 "$(awk 'BEGIN {for (i = 1; i <= 10000; i++) s += 1 / i; printf "%.14f", s}')"
check "double rounding" 0.30000000000000004 "$(awk 'BEGIN {printf "%.17f", 0.1 + 0.2}')"
check "large and small" "1e+300 1e-300" "$(awk 'BEGIN {printf "%g %g", 1e150 * 1e150, 1e-150 * 1e-150}')"
check "truncation" "-3 3" "$(awk 'BEGIN {print int(-3.99), int(3.99)}')"
check "64-bit integers" 9223372036854775807 $((0x7fffffffffffffff))
check "division and remainder" "-3 -1" "$((-10 / 3)) $((-10 % 3))"

# Time goes forward, and the kernel saw nothing alarming.
start=$(cut -d. -f1 /proc/uptime); sleep 1; end=$(cut -d. -f1 /proc/uptime)
check "a second passes" yes "$([ "$end" -gt "$start" ] && echo yes || echo no)"
check "no kernel complaint" 0 "$(dmesg | grep -c -E 'BUG:|Oops|Call Trace|general protection|invalid opcode')"
"""
    + f"""\
if [ "$failures" = 0 ]; then echo "{PASSED}"; else echo "{FAILED}: $failures"; fi
poweroff -f
"""
)
