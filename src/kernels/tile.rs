//! The register tile under the attention products.
#![allow(clippy::needless_range_loop, reason = "indices over register tiles read like the formulas")]

use super::lanes::Lanes;

/// `acc[r][c] += sum over k < depth of a[r * a_row + k * a_step] * b[c][k * b_step ..][..N]`
///
/// Each element is one chain of multiply-adds over `k` in order: a result does not depend on the shape of the tile it is
/// computed in. (The tile comes by reference: returned by value, it was copied through memory twice.)
///
/// # Safety
/// The processor must have `V`'s instructions, and all addresses named above must be readable.
#[inline(always)]
pub(crate) unsafe fn multiply_add<V: Lanes, const R: usize, const C: usize>(
    depth: usize,
    (mut a, a_row, a_step): (*const f32, usize, usize),
    (mut b, b_step): ([*const f32; C], usize),
    acc: &mut [[V; C]; R],
) {
    // SAFETY: by contract; the last step leaves the pointers past the end, where `wrapping_add` may point.
    unsafe {
        for _ in 0..depth {
            let mut columns = [V::splat(0.0); C];
            for c in 0..C {
                columns[c] = V::load(b[c]);
                b[c] = b[c].wrapping_add(b_step);
            }
            for r in 0..R {
                let row = V::splat(*a.add(r * a_row));
                for c in 0..C {
                    acc[r][c] = row.mul_add(columns[c], acc[r][c]);
                }
            }
            a = a.wrapping_add(a_step);
        }
    }
}
