//! Detects AMX, which the standard library does not detect yet.

use std::arch::asm;
use std::sync::OnceLock;

/// Whether the processor has AMX and the kernel lets this process use it; detected once. Unit tests emulate AMX instead, unless
/// `DIAGNOSE_AMX_TESTS` is set: set it on a machine with AMX, on which these tests have not been run yet.
pub(crate) fn has_tiles() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| {
        let wanted = !cfg!(test) || std::env::var_os("DIAGNOSE_AMX_TESTS").is_some();
        wanted && in_processor() && granted()
    })
}

fn in_processor() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILES) == BF16 | TILES
}

/// Requests the permission to use tiles, for which Linux saves eight more kilobytes per process.
#[cfg(target_os = "linux")]
fn granted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let answer: i64;
    // SAFETY: a system call that takes two numbers and touches no memory of ours; it clobbers `rcx` and `r11`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn granted() -> bool {
    false
}
