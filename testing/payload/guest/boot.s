# Entry, static descriptor tables and page tables, interrupt stubs, the trampoline of the other CPUs.
#
# Ring 0 may be emulated instruction by instruction (about 1.6 us each on a software KVM), so the way
# from the entry point to ring 3 is about twenty instructions, and everything that can be a constant
# is one. Included by boot.rs, which fills in the constants in braces.

# ---------------------------------------------------------------- PVH note (Xen: xen/include/public/elfnote.h)
    .section .note.Xen, "a", @note
    .align 4
    .long 4, 8, 18                  # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

# ---------------------------------------------------------------- interrupt stubs, 32 bytes each, at 0x100000
# Before {VEC_MANUAL}: exceptions. {VEC_MANUAL}..{VEC_AUTO}: count, and go back with interrupts off: ring 3
# ends the interrupt at the LAPIC and turns them on. (A software KVM may end an interrupt as it is taken;
# with interrupts on, a level that stays high would then let ring 3 never get anywhere.)
# From {VEC_AUTO}: count and end it. Vector 6 at one address is the gate to ring 0.
    .section .vectors, "awx", @progbits
    .set vec, 0
    .rept 256
    .balign 32
    .if vec < {VEC_MANUAL}
      .if vec == 6
        cmpq $gate_instruction, (%rsp)
        je gate
        push $0
      .elseif (vec == 8) || ((vec >= 10) && (vec <= 14)) || (vec == 17) || (vec == 21) || (vec == 29) || (vec == 30)
      .else
        push $0
      .endif
      push $vec
      jmp exception
    .else
      incl %gs:percpu0 + {PC_COUNTERS} + vec * 4
      .if (vec >= {VEC_AUTO}) && (vec != {VEC_SPURIOUS})
        movabsl %eax, 0xfee000b0    # end of interrupt: the value does not matter
      .elseif vec != {VEC_SPURIOUS}
        andl $~0x200, 16(%rsp)      # rflags of the interrupted code
      .endif
      iretq
    .endif
    .set vec, vec + 1
    .endr
    .balign 32

# ---------------------------------------------------------------- IDT at 0x102000
    .section .idt, "aw", @progbits
idt:
    .set vec, 0
    .rept 256
    .word vec * 32                  # stub address, bits 15:0
    .word {SEL_KCODE}
    .byte 0
    .byte 0x8e                      # interrupt gate
    .word 0x0010                    # stub address, bits 31:16
    .quad 0
    .set vec, vec + 1
    .endr

# ---------------------------------------------------------------- TSS of CPU 0 at 0x103000: all ports allowed
    .section .tss, "aw", @progbits
tss0:
    .long 0
    .quad ring0_stack_top           # RSP0
    .quad 0, 0, 0
    .quad 0, 0, 0, 0, 0, 0, 0
    .quad 0
    .word 0
    .word 0x68                      # offset of the I/O bitmap
    .fill 8192, 1, 0
    .byte 0xff

# ---------------------------------------------------------------- page tables: 4 GiB identity, ring 3 may use all
    .section .tables, "aw", @progbits
    .balign 4096
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
pdpt:
    .quad pd + 0x27, pd + 0x1027, pd + 0x2027, pd + 0x3027
    .fill 508, 8, 0
pd:
    .set page, 0
    .rept 2048
    .quad page + 0xe7               # present, write, user, accessed, dirty, 2 MiB
    .set page, page + 0x200000
    .endr
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08 ring 0 code, 64 bit
    .quad 0x00cf93000000ffff        # 0x10 ring 0 data
    .quad 0x00cff3000000ffff        # 0x18 ring 3 data
    .quad 0x00affb000000ffff        # 0x20 ring 3 code, 64 bit
tss_descriptors:                    # 0x28 + 16 * CPU
    .quad 0x0000891030002068        # base 0x103000, limit 0x2068, available TSS
    .quad 0
    .fill 2 * ({MAX_CPUS} - 1), 8, 0
gdt_end:
    .balign 16
gdtr:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 16
idtr:
    .word 4095
    .quad idt

    .balign 16
boot_frame:                         # what the first iretq pops
    .quad ring3_entry, {SEL_UCODE}, 0x2, ring3_stack_top, {SEL_UDATA}

    .section .stacks, "aw", @nobits
    .balign 4096
    .skip 4096
ring0_stack_top:
    .skip 65536
ring3_stack_top:

# ---------------------------------------------------------------- PVH entry: 32-bit protected mode, paging off
    .section .boot, "ax", @progbits
    .code32
    .globl pvh_entry
pvh_entry:
    lgdtl gdtr
    movl ${CR4}, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          # EFER.LME
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl ${CR0}, %eax
    movl %eax, %cr0
    ljmpl ${SEL_KCODE}, $1f
    .code64
1:  lidt idtr
    movl ${SEL_TSS0}, %eax
    ltr %ax
    movl $boot_frame, %esp
    iretq

ring3_entry:
    movb $'!', %al                  # the first thing ring 3 does: the mark that boot time is measured by
    outb %al, $0xe9
    movl %ebx, %edi                 # start_info
    call ring3_main
1:  jmp 1b

# ---------------------------------------------------------------- exceptions
# Stack: vector, error code, rip, cs, rflags, rsp, ss.
exception:
    testb $3, 24(%rsp)
    jz 1f
    # Ring 3 faulted: note it and go on where the CPU's record says, in ring 3, stack unchanged.
    popq %gs:percpu0 + {PC_VECTOR}
    popq %gs:percpu0 + {PC_ERROR}
    pushq %rax
    movq 8(%rsp), %rax
    movq %rax, %gs:percpu0 + {PC_RIP}
    movq %cr2, %rax
    movq %rax, %gs:percpu0 + {PC_CR2}
    movq %gs:percpu0 + {PC_RESUME}, %rax
    movq %rax, 8(%rsp)
    popq %rax
    iretq
1:  # Ring 0 faulted: only a privileged operation asked for by ring 3 can; tell it so in r11.
    popq %r11
    incl %r11d
    movq %gs:percpu0 + {PC_RSP0}, %rsp
    subq $40, %rsp
    iretq

# The gate: ring 3 calls enter_ring0 with the operation in rdi. An invalid opcode rather than INT n or
# SYSCALL: the first is not emulated everywhere, the second would need MSRs written at boot.
    .globl enter_ring0
enter_ring0:
gate_instruction:
    ud2
    ret
gate:
    addq $2, (%rsp)                 # past the ud2
    xorl %r11d, %r11d
    call *%rdi
    iretq

# What the stubs call instead of their store to the EOI register in x2APIC mode.
    .globl x2apic_eoi
x2apic_eoi:
    pushq %rax
    pushq %rcx
    pushq %rdx
    xorl %eax, %eax
    xorl %edx, %edx
    movl $0x80b, %ecx
    wrmsr
    popq %rdx
    popq %rcx
    popq %rax
    ret

# Where an exception that nobody expected goes on, in ring 3.
    .globl unexpected_fault
unexpected_fault:
    andq $-16, %rsp
    call report_fault
1:  jmp 1b

# ---------------------------------------------------------------- operations that need ring 0, called through the gate
    .globl r0_rdmsr, r0_wrmsr, r0_irq_on, r0_irq_off, r0_wait, r0_hlt, r0_lidt, r0_read_cr, r0_ud, r0_nop, r0_invlpg
r0_rdmsr: rdmsr
r0_nop: ret
r0_wrmsr: wrmsr
    ret
r0_irq_on: orl $0x200, 24(%rsp)     # return address, rip, cs, rflags
    ret
r0_irq_off: andl $~0x200, 24(%rsp)
    ret
r0_wait: sti                        # sleep until an interrupt; the one that ends the sleep is taken here
    hlt
    cli
    ret
r0_hlt: cli
    hlt
    ret
r0_lidt: lidt (%rsi)
    ret
r0_read_cr: movq %cr0, %rax
    movq %cr2, %rcx
    movq %cr3, %rdx
    movq %cr4, %rsi
    ret
r0_invlpg: invlpg (%rsi)
    ret

# ---------------------------------------------------------------- the other CPUs: copied to a page below 1 MiB
    .section .rodata.trampoline, "a", @progbits
    .globl trampoline, trampoline_end
    .code16
trampoline:
    cli
    lgdtl %cs:(ap_gdtr - trampoline)
    movl ${CR4}, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl ${CR0}, %eax
    movl %eax, %cr0
    ljmpl ${SEL_KCODE}, $ap_long
    .balign 8
ap_gdtr:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:
    .code64

    .section .boot, "ax", @progbits
ap_long:
    lidt idtr
    movw ap_tss_selector, %ax
    ltr %ax
    movl $0xc0000101, %ecx          # GS base: this CPU's record, relative to that of CPU 0
    movl ap_gs_base, %eax
    movl ap_gs_base + 4, %edx
    wrmsr
    movq ap_frame, %rsp
    iretq

    .globl ap_ring3_entry
ap_ring3_entry:
    call ap_main
1:  jmp 1b

    .section .data, "aw", @progbits
    .balign 8
    .globl ap_gs_base, ap_frame, ap_tss_selector, tss_descriptors, ring0_stack_top, pml4, tss0
ap_gs_base: .quad 0
ap_frame: .quad 0
ap_tss_selector: .word 0
    .text
