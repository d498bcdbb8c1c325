//! AdamW's update of a flat array (Loshchilov and Hutter 2017, arXiv 1711.05101), as PyTorch computes it:
//!
//! ```text
//! g <- factor g        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
//! w <- w (1 - lr decay) - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```
//!
//! Moments are f32, or bf16 to halve their memory. bf16 moments are rounded stochastically, with probabilities that keep the mean
//! exact: rounded to nearest, a second moment would never shrink, because with b2 = 0.999 a step changes it by less than half a unit in
//! the last place. The random bits are a function of step and index, so equal runs give equal bits.

use super::Stored;
use super::lanes::Lanes;
use super::level::{Kernel, Level};

/// The first and second moments of an array.
#[derive(Debug, Clone, PartialEq)]
pub enum Moments {
    F32([Vec<f32>; 2]),
    /// Stored as the upper halves of f32.
    Bf16([Vec<u16>; 2]),
}

/// The parameters of one update.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// The factor of the gradient, from clipping.
    pub factor: f32,
    /// `lr / (1 - b1^t)`
    pub rate: f32,
    /// `1 - lr decay`
    pub keep: f32,
    /// The decay rates `b1` and `b2` of the two moments.
    pub betas: [f32; 2],
    /// `1 - b`, from the betas in f64.
    pub complements: [f32; 2],
    /// `sqrt(1 - b2^t)`
    pub root: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// The key of the random draws by which bf16 moments are rounded.
    pub key: u32,
}

impl Moments {
    /// The initial moments of `len` numbers.
    pub fn zeros(len: usize, stored: Stored) -> Moments {
        match stored {
            Stored::F32 => Moments::F32([vec![0.0; len], vec![0.0; len]]),
            Stored::Bf16 => Moments::Bf16([vec![0; len], vec![0; len]]),
        }
    }

    /// Splits the moments into blocks of `len` numbers.
    pub fn blocks(&mut self, len: usize) -> Vec<BlockMoments<'_>> {
        match self {
            Moments::F32([m, v]) => m.chunks_mut(len).zip(v.chunks_mut(len)).map(|(m, v)| BlockMoments::F32([m, v])).collect(),
            Moments::Bf16([m, v]) => {
                let blocks = m.chunks_mut(len).zip(v.chunks_mut(len)).enumerate();
                blocks.map(|(i, (m, v))| BlockMoments::Bf16 { moments: [m, v], first: (i * len) as u32 }).collect()
            }
        }
    }
}

/// The moments of one block of an array.
pub enum BlockMoments<'a> {
    F32([&'a mut [f32]; 2]),
    Bf16 {
        moments: [&'a mut [u16]; 2],
        /// The index of the block's first number in the array, so that no two numbers share random bits.
        first: u32,
    },
}

/// Updates a block of `values` with its `gradient`, which is reset to 0; all have the same length.
pub fn adamw(values: &mut [f32], gradient: &mut [f32], moments: BlockMoments, update: &Update) {
    run(Level::current(), values, gradient, moments, update);
}

fn run(level: Level, w: &mut [f32], g: &mut [f32], moments: BlockMoments, update: &Update) {
    match moments {
        BlockMoments::F32([m, v]) => level.run(Whole { w, g, m, v, update: *update }),
        BlockMoments::Bf16 { moments: [m, v], first } => level.run(Halves { w, g, m, v, update: *update, first }),
    }
}

struct Whole<'a> {
    w: &'a mut [f32],
    g: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    update: Update,
}

impl Kernel for Whole<'_> {
    type Output = ();

    // Plain loops, which the compiler vectorises with the level's instructions.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Whole { w, g, m, v, update } = self;
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            (*w, *m, *v) = step(*w, *g, *m, *v, &update);
            *g = 0.0;
        }
    }
}

struct Halves<'a> {
    w: &'a mut [f32],
    g: &'a mut [f32],
    m: &'a mut [u16],
    v: &'a mut [u16],
    update: Update,
    /// The index of the block's first number in the whole array.
    first: u32,
}

impl Kernel for Halves<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Halves { w, g, m, v, update, first } = self;
        let widened = |half: u16| f32::from_bits(u32::from(half) << 16);
        for (i, (((w, g), m), v)) in w.iter_mut().zip(g).zip(m).zip(v).enumerate() {
            let (m_new, v_new);
            (*w, m_new, v_new) = step(*w, *g, widened(*m), widened(*v), &update);
            let draw = mix(first.wrapping_add(i as u32), update.key);
            *m = rounded(m_new, draw & 0xffff);
            *v = rounded(v_new, draw >> 16);
            *g = 0.0;
        }
    }
}

/// Returns the weight and its moments after the update.
#[inline(always)]
fn step(w: f32, g: f32, m: f32, v: f32, update: &Update) -> (f32, f32, f32) {
    let ([b1, b2], [c1, c2]) = (update.betas, update.complements);
    let g = g * update.factor;
    let (m, v) = (b1 * m + c1 * g, b2 * v + c2 * g * g);
    (w * update.keep - update.rate * m / (v.sqrt() / update.root + update.eps), m, v)
}

/// Rounds stochastically to bf16. `draw` is one of 65,536 equally likely numbers.
#[inline(always)]
fn rounded(x: f32, draw: u32) -> u16 {
    let half = (x.to_bits().wrapping_add(draw) >> 16) as u16;
    // A moment could never recover from infinity, so this returns the largest finite number instead.
    if half & 0x7fff == 0x7f80 && x.is_finite() { half - 1 } else { half }
}

/// A 32-bit hash (the finaliser of MurmurHash3).
#[inline(always)]
fn mix(i: u32, key: u32) -> u32 {
    let mut h = i.wrapping_mul(0x9e37_79b1) ^ key;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::noise;

    const UPDATE: Update = Update {
        factor: 0.5,
        rate: 0.01,
        keep: 0.999,
        betas: [0.9, 0.999],
        complements: [0.1, 0.001],
        root: 0.031_622_775,
        eps: 1e-8,
        key: 7,
    };

    #[test]
    fn first_step_by_hand() {
        // With zero moments, m / (1 - b1) = g and sqrt(v / (1 - b2)) = |g|, so the weight moves by the learning rate 0.001.
        for stored in Stored::ALL {
            for level in Level::available() {
                let (mut w, mut g) = (vec![1.0f32, -1.0, 2.0], vec![4.0f32, -8.0, 0.0]);
                let mut moments = Moments::zeros(3, stored);
                run(level, &mut w, &mut g, moments.blocks(3).remove(0), &UPDATE);
                for (found, expected) in w.iter().zip([0.999 - 0.001, -0.999 + 0.001, 1.998]) {
                    assert!((found - expected).abs() < 1e-6, "{level} {found} {expected}");
                }
                assert_eq!(g, [0.0; 3]);
            }
        }
    }

    #[test]
    fn levels_agree_and_bf16_moments_stay_near_f32_ones_on_the_mean() {
        let n = 40_000;
        let run_all = |level: Level, stored: Stored| {
            let (mut w, mut moments) = (noise(n, 1.0, 1), Moments::zeros(n, stored));
            for step in 0..200u32 {
                let mut g = noise(n, 1.0, 2 + u64::from(step));
                let update = Update { key: step, ..UPDATE };
                let blocks = w.chunks_mut(1000).zip(g.chunks_mut(1000)).zip(moments.blocks(1000));
                blocks.for_each(|((w, g), moments)| run(level, w, g, moments, &update));
            }
            (w, moments)
        };
        let best = Level::available().pop().unwrap();
        let (exact, Moments::F32([_, v])) = run_all(best, Stored::F32) else { panic!("f32 was asked for") };
        let (half, Moments::Bf16([_, v_half])) = run_all(best, Stored::Bf16) else { panic!("bf16 was asked for") };
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / n as f64;
        let exact_mean = mean(&mut v.iter().map(|&v| f64::from(v)));
        let half_mean = mean(&mut v_half.iter().map(|&v| f64::from(f32::from_bits(u32::from(v) << 16))));
        // 40,000 second moments, each off by about 200^(1/2) roundings of 2^-9; the error of the mean is a two-hundredth of that.
        assert!((half_mean / exact_mean - 1.0).abs() < 1e-3, "{half_mean} {exact_mean}");
        let distance = mean(&mut exact.iter().zip(&half).map(|(a, b)| f64::from((a - b).abs())));
        let travelled = mean(&mut exact.iter().zip(noise(n, 1.0, 1)).map(|(a, b)| f64::from((a - b).abs())));
        assert!(distance < 0.02 * travelled, "{distance} of {travelled}");
        for level in Level::available() {
            let (w, _) = run_all(level, Stored::F32);
            // The portable level has no fused multiply-add, so 200 steps differ by rounding.
            assert!(w.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-4), "{level}");
        }
    }
}
