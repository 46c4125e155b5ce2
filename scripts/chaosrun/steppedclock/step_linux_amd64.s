#include "textflag.h"

// func step()
//
// The runtime calls it by C's convention: the clock's number in DI, the place for the answer in SI, the stack aligned by 16
// before the call. The kernel's function may change any register but BX, BP, SP and R12 to R15.
TEXT ·step(SB),NOSPLIT|NOFRAME,$0
	PUSHQ	DI
	PUSHQ	SI
	SUBQ	$8, SP
	MOVQ	·kernel(SB), AX
	CALL	AX
	ADDQ	$8, SP
	POPQ	SI
	POPQ	DI
	CMPL	DI, $0 // CLOCK_REALTIME
	JNE	done
	MOVQ	·ahead(SB), CX
	ADDQ	CX, 0(SI) // tv_sec
done:
	RET

// func stepAddress() uintptr
TEXT ·stepAddress(SB),NOSPLIT,$0-8
	LEAQ	·step(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
