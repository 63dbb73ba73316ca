"""The bodies of the guest programs, kind by kind; see `programs` for what they may use."""

from pellucid.cli.bench.programs import NO_SETUP, GuestProgram

MiB = 1 << 20

INTEGER = """
body:   mov rcx, r15
        mov rax, 0x9e3779b97f4a7c15
        mov ebx, 1
        mov esi, 12345
step:   mov rdx, rax                ; xorshift64
        shl rdx, 13
        xor rax, rdx
        mov rdx, rax
        shr rdx, 7
        xor rax, rdx
        mov rdx, rax
        shl rdx, 17
        xor rax, rdx
        lea rbx, [rbx+rax*4+5]
        imul rdx, rax, 0x5851f42d
        add rbx, rdx
        rol rbx, 9
        sub rbx, rcx
        mov edx, eax
        and edx, esi
        or edx, 1
        add esi, edx
        adc rbx, 0
        neg rdx
        xor rbx, rdx
        movzx edx, bl
        add rsi, rdx
        dec rcx
        jne step
        lea rax, [rbx+rsi]
        ret
"""

BRANCHES = """
body:   mov rcx, r15
        mov eax, 2463534242
        xor ebx, ebx
step:   imul eax, eax, 1103515245
        add eax, 12345
        test eax, 0x10000
        je one
        inc rbx
one:    test eax, 0x20000
        jne two
        add rbx, 3
two:    cmp eax, 0
        jl three
        xor rbx, rax
three:  mov edx, eax
        shr edx, 19
        and edx, 7
        jmp [table+rdx*8]
case0:  add rbx, 7
        jmp joined
case1:  sub rbx, 11
        jmp joined
case2:  call leaf
        jmp joined
case3:  rol rbx, 1
        jmp joined
case4:  call leaf
        call leaf
        jmp joined
case5:  not rbx
        jmp joined
case6:  lea rdx, [leaf]
        call rdx
        jmp joined
case7:  lea rbx, [rbx+rbx*2]
joined: cmp rbx, rax
        jb below
        sub rbx, rax
below:  dec rcx
        jne step
        mov rax, rbx
        ret
leaf:   test ebx, 1
        je even
        add rbx, 13
        ret
even:   shr rbx, 1
        ret
.align 8
table:  .quad case0, case1, case2, case3, case4, case5, case6, case7
"""

# 64 KiB: loads and stores of every width, a read-modify-write, and the stack.
MEMORY = """
setup:  mov rdi, buffer
        mov ecx, 8192
fill:   mov [rdi], rdi
        add rdi, 8
        dec rcx
        jne fill
        ret
body:   mov rcx, r15
        mov rsi, buffer
        xor eax, eax
step:   add rax, [rsi]
        mov [rsi+8], rax
        movzx edx, byte [rsi+17]
        add eax, edx
        mov [rsi+18], ax
        mov edx, [rsi+20]
        push rax
        push rdx
        add [rsi+24], eax
        movsx rdx, word [rsi+30]
        xor rax, rdx
        pop rdx
        pop rbx
        lea rax, [rbx+rax*2]
        sub rax, rdx
        add rsi, 32
        cmp rsi, buffer_end
        jne next
        mov rsi, buffer
next:   dec rcx
        jne step
        ret
"""

# 8 MiB in 4 KiB pages, in no order: more pages than a processor's TLB, or an emulator's, holds.
MEMORY_FAR = """
setup:  mov rdi, buffer
        mov esi, 0x800000
        mov edx, MADV_NOHUGEPAGE    ; a kernel without huge pages refuses, and means the same
        mov eax, SYS_madvise
        syscall
        mov rdi, buffer
        mov ecx, 0x100000
fill:   mov [rdi], rcx
        add rdi, 8
        dec rcx
        jne fill
        ret
body:   mov rcx, r15
        mov eax, 2463534242
        xor ebx, ebx
step:   imul eax, eax, 1103515245
        add eax, 12345
        mov edx, eax
        shr edx, 12
        mov rsi, [buffer+rdx*8]
        add rbx, rsi
        xor edx, 0x5a5a5
        mov [buffer+rdx*8], rbx
        dec rcx
        jne step
        mov rax, rbx
        ret
"""

# Each iteration fills 2 KiB by bytes, copies them by quadwords, and looks for a byte at the end.
STRINGS = """
body:   mov r8, r15
        xor ebx, ebx
step:   mov rdi, buffer
        mov ecx, 2048
        mov eax, r8d
        rep stosb
        mov rsi, buffer
        mov rdi, buffer+0x4000
        mov ecx, 256
        rep movsq
        mov byte [buffer+0x4400], 255
        mov rdi, buffer+0x4400
        mov ecx, 1024
        mov al, 255
        repne scasb
        add rbx, rcx
        movzx eax, byte [buffer+0x47ff]
        add rbx, rax
        dec r8
        jne step
        mov rax, rbx
        ret
"""

# The logistic map x = 3.9 x (1 - x) stays between 0 and 1 for ever; sums, quotients and roots are taken of it.
FLOAT_SSE = """
body:   mov rcx, r15
        movsd xmm0, [seed]
        movsd xmm1, [rate]
        movsd xmm2, [one]
        xorpd xmm7, xmm7
        xor ebx, ebx
step:   movapd xmm3, xmm2
        subsd xmm3, xmm0
        mulsd xmm0, xmm1
        mulsd xmm0, xmm3
        movapd xmm4, xmm2
        addsd xmm4, xmm0
        movapd xmm5, xmm0
        divsd xmm5, xmm4
        sqrtsd xmm6, xmm4
        addsd xmm7, xmm5
        subsd xmm7, xmm6
        ucomisd xmm5, [half]
        ja high
        inc rbx
high:   cvtsi2sd xmm6, ecx
        mulsd xmm6, xmm5
        cvttsd2si edx, xmm6
        add rbx, rdx
        dec rcx
        jne step
        movq rax, xmm7
        xor rax, rbx
        ret
.align 8
seed:   .double 0.375
rate:   .double 3.9
one:    .double 1.0
half:   .double 0.4
"""

FLOAT_PACKED = """
body:   mov rcx, r15
        movapd xmm0, [seed]
        movapd xmm1, [rate]
        movapd xmm2, [one]
        xorpd xmm7, xmm7
        cvtpd2ps xmm8, xmm0
        movlhps xmm8, xmm8
        cvtpd2ps xmm9, xmm1
        movlhps xmm9, xmm9
        cvtpd2ps xmm10, xmm2
        movlhps xmm10, xmm10
        xorps xmm15, xmm15
step:   movapd xmm3, xmm2
        subpd xmm3, xmm0
        mulpd xmm0, xmm1
        mulpd xmm0, xmm3
        addpd xmm7, xmm0
        movapd xmm4, xmm0
        maxpd xmm4, xmm3
        divpd xmm4, xmm1
        subpd xmm7, xmm4
        movaps xmm11, xmm10
        subps xmm11, xmm8
        mulps xmm8, xmm9
        mulps xmm8, xmm11
        addps xmm15, xmm8
        shufps xmm15, xmm15, 0x39
        minps xmm11, xmm8
        subps xmm15, xmm11
        dec rcx
        jne step
        movq rax, xmm7
        movq rdx, xmm15
        xor rax, rdx
        ret
.align 16
seed:   .double 0.375, 0.625
rate:   .double 3.9, 3.7
one:    .double 1.0, 1.0
"""

FLOAT_X87 = """
body:   mov rcx, r15
        fninit
        fldz                        ; the sum
        fld qword [seed]            ; x above it
step:   fld1
        fsub st0, st1
        fmul qword [rate]
        fmulp st1, st0
        fld st0
        fld1
        fadd st0, st2
        fdivp st1, st0
        faddp st2, st0
        fld1
        fadd st0, st1
        fsqrt
        fsubp st2, st0
        dec rcx
        jne step
        fxch st0, st1
        fstp qword [scratch]
        fstp st0
        mov rax, [scratch]
        ret
.align 8
seed:   .double 0.375
rate:   .double 3.9
"""

SYSCALLS = """
body:   mov r12, r15
        xor ebx, ebx
step:   mov eax, SYS_getppid
        syscall
        test rax, rax
        js fail
        inc rbx
        dec r12
        jne step
        mov rax, rbx
        ret
"""

# An iteration is one page: 64 pages are written in turn, given back, and written again.
PAGE_FAULTS = """
body:   mov r12, r15
        xor ebx, ebx
        mov r13, buffer
step:   add rbx, [r13]              ; given back, it reads as zero
        mov [r13], r12
        inc rbx
        add r13, 0x1000
        cmp r13, buffer+0x40000
        jne next
        mov rdi, buffer
        mov esi, 0x40000
        mov edx, MADV_DONTNEED
        mov eax, SYS_madvise
        syscall
        test rax, rax
        jne fail
        mov r13, buffer
next:   dec r12
        jne step
        mov rax, rbx
        ret
"""

FORK = """
body:   mov r12, r15
        xor ebx, ebx
step:   mov eax, SYS_fork
        syscall
        test rax, rax
        js fail
        je child
        mov rdi, -1
        mov rsi, scratch
        xor edx, edx
        xor r10d, r10d
        mov eax, SYS_wait4
        syscall
        test rax, rax
        js fail
        movzx eax, byte [scratch+1]
        add rbx, rax
        dec r12
        jne step
        mov rax, rbx
        ret
child:  mov edi, 3
        mov eax, SYS_exit
        syscall
"""

# Two processes and two pipes: an iteration sends a byte there and back. The child ends when its pipe does.
CONTEXT_SWITCH = """
setup:  mov rdi, scratch
        mov eax, SYS_pipe
        syscall
        test rax, rax
        jne fail
        mov rdi, scratch+8
        mov eax, SYS_pipe
        syscall
        test rax, rax
        jne fail
        mov eax, SYS_fork
        syscall
        test rax, rax
        js fail
        je child
        ret
child:  mov edi, [scratch+4]        ; or the child would keep its own pipe open
        mov eax, SYS_close
        syscall
echo:   mov edi, [scratch]
        call get
        test rax, rax
        jle fail
        inc byte [buffer]
        mov edi, [scratch+12]
        call put
        jmp echo
body:   mov r12, r15
        xor ebx, ebx
step:   mov edi, [scratch+4]
        mov [buffer], r12l
        call put
        mov edi, [scratch+8]
        call get
        cmp rax, 1
        jne fail
        movzx eax, byte [buffer]
        add rbx, rax
        dec r12
        jne step
        mov rax, rbx
        ret
get:    mov rsi, buffer
        mov edx, 1
        mov eax, SYS_read
        syscall
        ret
put:    mov rsi, buffer
        mov edx, 1
        mov eax, SYS_write
        syscall
        ret
"""

PROGRAMS = (
    GuestProgram("integer", "arithmetic, shifts and flags on registers", 100_000_000, NO_SETUP + INTEGER),
    GuestProgram("branches", "unpredictable, indirect, calls and returns", 8_000_000, NO_SETUP + BRANCHES),
    GuestProgram("memory", "loads, stores and stack, 64 KiB", 30_000_000, MEMORY),
    GuestProgram("memory-far", "random words of 8 MiB in 4 KiB pages", 2_000_000, MEMORY_FAR, 8 * MiB),
    GuestProgram("strings", "rep stosb, movsq, scasb of 2 KiB", 100_000, NO_SETUP + STRINGS),
    GuestProgram("float-sse", "scalar doubles", 6_000_000, NO_SETUP + FLOAT_SSE, floating=True),
    GuestProgram("float-packed", "vectors of floats and doubles", 4_000_000, NO_SETUP + FLOAT_PACKED, floating=True),
    GuestProgram("float-x87", "80-bit floats", 1_500_000, NO_SETUP + FLOAT_X87, floating=True),
    GuestProgram("syscalls", "getppid", 800_000, NO_SETUP + SYSCALLS),
    GuestProgram("page-faults", "anonymous pages written first", 40_000, NO_SETUP + PAGE_FAULTS, MiB),
    GuestProgram("fork", "fork, exit and wait", 1_000, NO_SETUP + FORK),
    GuestProgram("context-switch", "a byte to another process and back", 8_000, CONTEXT_SWITCH),
)
BY_NAME = {program.name: program for program in PROGRAMS}
