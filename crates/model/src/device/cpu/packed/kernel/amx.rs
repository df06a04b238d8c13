//! Tile registers: 16 x 16 sums of pairs of bf16 by one instruction.
//!
//! Source: Intel's Software Developer's Manual, chapter on AMX, TDPBF16PS: products and sums are rounded to nearest even,
//! subnormals count as zero. The compiler's own functions for these instructions are not stable yet, so that they stand
//! here as assembly.

use std::arch::asm;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::super::pack::{self, Pair};
use super::super::rows::Rows;
use super::super::vectors::Avx512;
use super::{DenseKernel, Kernel, Out, Strips, blocks, dense_packing, line_words, packing};

/// Rows of a tile register; words of each of its rows.
const SIDE: usize = 16;
/// Rows of a tile, columns of a panel: two tile registers each way, so that their sums fill four of eight registers.
const BLOCK: usize = 2 * SIDE;

/// Whether the processor has tile registers, the rest of what packing needs, and the system lets this process use them.
pub(in super::super) fn is_possible() -> bool {
    static IS_POSSIBLE: OnceLock<bool> = OnceLock::new();
    *IS_POSSIBLE.get_or_init(|| super::avx512::has_bf16() && has_tiles() && is_permitted())
}

/// Source: the manual's CPUID, leaf 7: bit 22 of EDX is AMX-BF16, bit 24 AMX-TILE.
fn has_tiles() -> bool {
    let leaves = std::arch::x86_64::__cpuid(0).eax;
    leaves >= 7 && std::arch::x86_64::__cpuid_count(7, 0).edx >> 22 & 0b101 == 0b101
}

/// Linux gives the large state of tile registers to who asks for it.
///
/// Source: the kernel's documentation, arch/x86/xstate: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: the call reads and writes no memory of ours; a kernel that does not know it returns an error.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Elsewhere the processor's other instructions serve.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The shapes of the tile registers: eight of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

const SHAPES: Shapes = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut register = 0;
    while register < 8 {
        bytes[16 + 2 * register] = 64;
        bytes[48 + register] = SIDE as u8;
        register += 1;
    }
    Shapes(bytes)
};

/// Pairs of bf16 in tile registers.
pub(in super::super) enum AmxBf16 {}

impl DenseKernel for AmxBf16 {
    const TERMS: usize = 2;
    type Vectors = Avx512;
    const GRAIN: usize = 2 * SIDE;

    dense_packing!(
        "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16",
        Pair,
        pack::squares_of_columns::<f32, Pair>
    );
}

impl Kernel for AmxBf16 {
    const TILE: usize = BLOCK;
    const PANEL: usize = BLOCK;

    fn words(terms: usize) -> usize {
        terms.div_ceil(Self::TERMS).next_multiple_of(SIDE)
    }

    packing!("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16", Pair, u16, pack::squares_of_rows::<f32, Pair>);

    unsafe fn multiply(words: usize, a: Strips<'_>, b: Strips<'_>, (rows, cols): (usize, usize), out: Out) {
        assert!(words.is_multiple_of(SIDE));
        // SAFETY: the caller promised the instructions; the shapes are valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly)) };
        for (index, rows) in blocks(rows, BLOCK) {
            let a = a.strip(index, words * BLOCK).as_ptr();
            // SAFETY: the tile's rows are inside of `out`.
            let out = Out { start: unsafe { out.start.add(index * BLOCK * out.stride) }, ..out };
            for panel in 0..cols.div_ceil(BLOCK) {
                let (column, b) = (panel * BLOCK, b.strip(panel, words * BLOCK).as_ptr());
                // SAFETY: a and b hold `words`; the block is inside of `out`.
                unsafe {
                    // Panels go along the rows; the first of the next tile comes after the last.
                    let next = match column + BLOCK < cols {
                        true => out.start.wrapping_add(column + BLOCK),
                        false => out.start.wrapping_add(BLOCK * out.stride),
                    };
                    let out = Out { start: out.start.add(column), ..out };
                    if rows == BLOCK && column + BLOCK <= cols {
                        block(words, a, b, out, next);
                    } else if rows == BLOCK && column + SIDE == cols {
                        left_half(words, a, b, out);
                    } else {
                        edge(words, a, b, (rows, BLOCK.min(cols - column)), out);
                    }
                }
            }
        }
        // SAFETY: as above. What the registers held is no longer needed.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// A block of which not all is wanted, through one of our own.
///
/// # Safety
/// As [`block`], of `out` but for the rows and columns that it has not.
#[cold]
unsafe fn edge(words: usize, a: *const u32, b: *const u32, (rows, cols): (usize, usize), out: Out) {
    let mut edge = MaybeUninit::<Edge>::uninit();
    let whole = Out { start: edge.as_mut_ptr().cast(), stride: BLOCK, adds: false };
    // SAFETY: the caller's promises are the callee's; our own block is whole, and what is copied of it has been written.
    unsafe {
        match rows > SIDE {
            true => block(words, a, b, whole, whole.start),
            false => upper_half(words, a, b, whole),
        }
        copy(whole, (rows, cols), out);
    }
}

/// A block of which not all is wanted.
#[repr(C, align(64))]
struct Edge([f32; BLOCK * BLOCK]);

/// Some rows and columns of a block.
///
/// # Safety
/// Both have them.
unsafe fn copy(block: Out, (rows, cols): (usize, usize), out: Out) {
    for i in 0..rows {
        // SAFETY: the row is inside of both, and of `out` no one else's.
        let (row, to) = unsafe {
            let row = std::slice::from_raw_parts(block.start.add(i * block.stride), cols);
            (row, std::slice::from_raw_parts_mut(out.start.add(i * out.stride), cols))
        };
        match out.adds {
            true => to.iter_mut().zip(row).for_each(|(to, x)| *to += x),
            false => to.copy_from_slice(row),
        }
    }
}

/// 32 x 32 sums      a (words / 16, 2, 16, 16), b (words, 32)
///
/// Two rows a time of where the next sums will stand are fetched meanwhile: rows of a matrix lie too far apart for the
/// processor to guess.
///
/// # Safety
/// The registers are shaped; a, b and out have the sizes. `next` may be anywhere.
unsafe fn block(words: usize, a: *const u32, b: *const u32, out: Out, next: *const f32) {
    // SAFETY: reads 32 · words of a and of b, reads and writes 32 x 32 of out; fetching touches nothing.
    unsafe {
        asm!(
            "test {adds}, {adds}",
            "jz 2f",
            "tileloadd tmm0, [{upper} + {stride}*1]",
            "tileloadd tmm1, [{upper} + {stride}*1 + 64]",
            "tileloadd tmm2, [{lower} + {stride}*1]",
            "tileloadd tmm3, [{lower} + {stride}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "prefetchw [{next}]",
            "prefetchw [{next} + 64]",
            "prefetchw [{next} + {stride}*1]",
            "prefetchw [{next} + {stride}*1 + 64]",
            "lea {next}, [{next} + {stride}*2]",
            "tileloadd tmm6, [{b} + {b_row}*1]",
            "tileloadd tmm7, [{b} + {b_row}*1 + 64]",
            "tileloadd tmm4, [{a} + {a_row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {a_row}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "sub {words}, 16",
            "jnz 3b",
            "tilestored [{upper} + {stride}*1], tmm0",
            "tilestored [{upper} + {stride}*1 + 64], tmm1",
            "tilestored [{lower} + {stride}*1], tmm2",
            "tilestored [{lower} + {stride}*1 + 64], tmm3",
            adds = in(reg) u64::from(out.adds),
            upper = in(reg) out.start,
            lower = in(reg) out.start.add(SIDE * out.stride),
            stride = in(reg) 4 * out.stride,
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            words = inout(reg) words => _,
            next = inout(reg) next => _,
            a_row = in(reg) 64u64,
            b_row = in(reg) 128u64,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The first 16 of 32 rows, set.
///
/// # Safety
/// As [`block`].
unsafe fn upper_half(words: usize, a: *const u32, b: *const u32, out: Out) {
    // SAFETY: reads 32 · words of a and of b, writes 16 x 32 of out.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a} + {a_row}*1]",
            "tileloadd tmm6, [{b} + {b_row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {b_row}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "sub {words}, 16",
            "jnz 2b",
            "tilestored [{start} + {stride}*1], tmm0",
            "tilestored [{start} + {stride}*1 + 64], tmm1",
            start = in(reg) out.start,
            stride = in(reg) 4 * out.stride,
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            words = inout(reg) words => _,
            a_row = in(reg) 64u64,
            b_row = in(reg) 128u64,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The first 16 of 32 columns: what adapters of rank 16 make.
///
/// # Safety
/// As [`block`].
unsafe fn left_half(words: usize, a: *const u32, b: *const u32, out: Out) {
    // SAFETY: reads 32 · words of a and of b, reads and writes 32 x 16 of out.
    unsafe {
        asm!(
            "test {adds}, {adds}",
            "jz 2f",
            "tileloadd tmm0, [{upper} + {stride}*1]",
            "tileloadd tmm2, [{lower} + {stride}*1]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm2",
            "3:",
            "tileloadd tmm6, [{b} + {b_row}*1]",
            "tileloadd tmm4, [{a} + {a_row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a} + {a_row}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "add {a}, 2048",
            "add {b}, 2048",
            "sub {words}, 16",
            "jnz 3b",
            "tilestored [{upper} + {stride}*1], tmm0",
            "tilestored [{lower} + {stride}*1], tmm2",
            adds = in(reg) u64::from(out.adds),
            upper = in(reg) out.start,
            lower = in(reg) out.start.add(SIDE * out.stride),
            stride = in(reg) 4 * out.stride,
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            words = inout(reg) words => _,
            a_row = in(reg) 64u64,
            b_row = in(reg) 128u64,
            out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack),
        );
    }
}
