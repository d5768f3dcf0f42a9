/* /init of the probe's guest: the first and only process, a whole ELF file of 384 bytes.
 *
 * It executes cmpxchg16b and xsave/xrstor, writes one line of 32 bytes to the console and restarts, which ends
 * QEMU under -no-reboot. Assemble:  gcc -c init.S -o init.o && ld -Ttext=0x400000 --oformat binary init.o -o init
 */
	.intel_syntax noprefix
	.globl	_start
	.text
base:	/* ELF header: 64 bits, little endian, executable, x86-64, one program header */
	.byte	0x7f, 'E', 'L', 'F', 2, 1, 1, 0
	.quad	0
	.word	2, 62
	.long	1
	.quad	_start, 64, 0
	.long	0
	.word	64, 56, 1, 0, 0, 0
	/* program header: load the file and zeroed memory behind it, readable, writable, executable */
	.long	1, 7
	.quad	0, base, base, size, size + 8192, 4096

_start:
	lea	rdi, [rip + wide]
	lea	rsi, [rip + bad_cmpxchg16b]
	xor	eax, eax			/* expect rdx:rax = 0 */
	xor	edx, edx
	mov	ebx, 1				/* put rcx:rbx = 2:1 */
	mov	ecx, 2
	lock cmpxchg16b [rdi]
	jnz	say
	cmp	qword ptr [rdi], 1
	jne	say
	cmp	qword ptr [rdi + 8], 2
	jne	say

	lea	rsi, [rip + bad_xsave]
	movdqa	xmm0, [rdi]
	lea	rdi, [rip + area]
	mov	eax, 7				/* x87, SSE and AVX state */
	xor	edx, edx
	xsave64	[rdi]
	pxor	xmm0, xmm0
	xrstor64 [rdi]
	pcmpeqd	xmm0, [rip + wide]
	pmovmskb eax, xmm0
	cmp	eax, 0xffff
	jne	say
	lea	rsi, [rip + good]
say:
	mov	eax, 1				/* write(1, message, 32) */
	mov	edi, 1
	mov	edx, 32
	syscall
	mov	eax, 169			/* reboot(MAGIC1, MAGIC2, CMD_RESTART) */
	mov	edi, 0xfee1dead
	mov	esi, 0x28121969
	mov	edx, 0x01234567
	syscall
	ud2

good:		.ascii	"\nATOLL PROBE: user space runs  \n"
bad_cmpxchg16b:	.ascii	"\nATOLL PROBE: cmpxchg16b fails \n"
bad_xsave:	.ascii	"\nATOLL PROBE: xsave fails      \n"
	.balign	16
wide:	.quad	0, 0
	.balign	64
area:	/* the XSAVE area: memory behind the file */
size = . - base
