//! Computes `exp` and `tanh` of vectors of f32.
//!
//! | | error | edges |
//! |---|---|---|
//! | `exp` | under 2 units in the last place on [-87.336, 88.722] | 0 below (no subnormals), infinity above, NaN stays NaN |
//! | `tanh` | under 2 units in the last place | exactly -1 and 1 from about |x| = 9 on, NaN stays NaN |
//!
//! `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)` and `|r| <= ln(2) / 2`; `exp(0)` is exactly 1. The polynomials are those of
//! Stephen Moshier's Cephes library (`single/expf.c`, `single/tanhf.c`).

use super::lanes::Lanes;
use super::level::{Kernel, Level};

/// `exp` of every element, in place.
pub fn exp_slice(level: Level, values: &mut [f32]) {
    level.run(Map { values, function: Function::Exp });
}

/// The smallest f32 whose exponential is a normal number, 2^-126 = exp(-87.3365447...).
const LOWEST: f32 = -87.336_54;
/// The largest f32 whose exponential is finite.
const HIGHEST: f32 = 88.722_83;
/// 1.5 * 2^23: adding it rounds to an integer, which is then in the lowest bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has nine bits, so that `n * LN2_HIGH` is exact even without a fused multiply-add.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `exp` of every lane.
#[inline(always)]
pub(crate) fn exp<V: Lanes>(x: V) -> V {
    let y = exp_in_range(x);
    let y = x.if_less(x.filled(LOWEST), x.filled(0.0), y);
    let y = x.filled(HIGHEST).if_less(x, x.filled(f32::INFINITY), y);
    x.if_nan(x, y)
}

/// `exp` of every lane, none of which may be positive. A NaN from arithmetic stays NaN; one with a payload may not.
#[inline(always)]
pub(crate) fn exp_of_nonpositive<V: Lanes>(x: V) -> V {
    x.if_less(x.filled(LOWEST), x.filled(0.0), exp_in_range(x))
}

/// `exp` of every lane between `LOWEST` and `HIGHEST`; unspecified for others.
#[inline(always)]
fn exp_in_range<V: Lanes>(x: V) -> V {
    let rounded = x.mul_add(x.filled(std::f32::consts::LOG2_E), x.filled(ROUND));
    let n = rounded.sub(x.filled(ROUND));
    let r = n.mul_add(x.filled(-LN2_HIGH), x);
    let r = n.mul_add(x.filled(-LN2_LOW), r);
    let mut p = x.filled(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, x.filled(coefficient));
    }
    let p = p.mul_add(r.mul(r), r).add(x.filled(1.0));
    // `n` is the low bits of `rounded`. The result is a normal number at both ends of the range: p is below 1 for n = 128, and
    // at least 1 for n = -126.
    p.add_to_exponent(rounded)
}

/// `tanh` of every lane.
#[inline(always)]
pub(crate) fn tanh<V: Lanes>(x: V) -> V {
    let magnitude = x.max(x.filled(0.0).sub(x));
    // Near zero, 1 - 2 / (exp(2x) + 1) would cancel.
    let z = x.mul(x);
    let mut p = x.filled(-5.704_988_7e-3);
    for coefficient in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = p.mul_add(z, x.filled(coefficient));
    }
    let small = p.mul(z).mul_add(x, x);
    let large = x.filled(1.0).sub(x.filled(2.0).div(exp(magnitude.add(magnitude)).add(x.filled(1.0))));
    let large = x.if_less(x.filled(0.0), x.filled(0.0).sub(large), large);
    let y = magnitude.if_less(x.filled(0.625), small, large);
    x.if_nan(x, y)
}

/// Applies a function to a slice; the last vector may be partial.
struct Map<'a> {
    values: &'a mut [f32],
    function: Function,
}

#[derive(Debug, Clone, Copy)]
enum Function {
    Exp,
    #[cfg(test)]
    Tanh,
}

impl Kernel for Map<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for chunk in self.values.chunks_mut(V::N) {
            // SAFETY: `chunk` holds `chunk.len() <= N` floats; the instructions are there by contract.
            unsafe {
                let x = V::load_first(chunk.as_ptr(), chunk.len());
                let y = match self.function {
                    Function::Exp => exp(x),
                    #[cfg(test)]
                    Function::Tanh => tanh(x),
                };
                y.store_first(chunk.as_mut_ptr(), chunk.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 1009th float between two bounds, including both.
    fn sweep(low: f32, high: f32) -> Vec<f32> {
        let ordered = |x: f32| if x < 0.0 { -i64::from(x.to_bits() & 0x7fff_ffff) } else { i64::from(x.to_bits()) };
        let value = |i: i64| if i < 0 { -f32::from_bits(-i as u32) } else { f32::from_bits(i as u32) };
        let mut values: Vec<f32> = (ordered(low)..=ordered(high)).step_by(1009).map(value).collect();
        values.push(high);
        values
    }

    /// The error in units in the last place of the true value.
    fn ulps(got: f32, truth: f64) -> f64 {
        let exponent = (truth.abs() as f32).to_bits() >> 23;
        (f64::from(got) - truth).abs() / 2f64.powi(exponent as i32 - 150)
    }

    fn worst(level: Level, function: Function, values: &[f32], truth: fn(f64) -> f64) -> (f64, f32) {
        let mut got = values.to_vec();
        level.run(Map { values: &mut got, function });
        let error = |(&x, &y): (&f32, &f32)| (ulps(y, truth(f64::from(x))), x);
        values.iter().zip(&got).map(error).fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
    }

    #[test]
    fn exp_is_within_two_units_of_the_truth() {
        let values = sweep(LOWEST, HIGHEST);
        assert!(values.len() > 2_000_000);
        for level in Level::available() {
            let (error, at) = worst(level, Function::Exp, &values, f64::exp);
            println!("{level}: exp is off by at most {error:.3} ulp, at {at}");
            assert!(error < 2.0, "{level}: {error} ulp at {at}");
        }
    }

    #[test]
    fn tanh_is_within_two_units_of_the_truth() {
        let values: Vec<f32> = sweep(-20.0, -1e-6).into_iter().chain(sweep(1e-6, 20.0)).collect();
        for level in Level::available() {
            let (error, at) = worst(level, Function::Tanh, &values, f64::tanh);
            println!("{level}: tanh is off by at most {error:.3} ulp, at {at}");
            assert!(error < 2.0, "{level}: {error} ulp at {at}");
        }
    }

    #[test]
    fn the_edges_are_exact() {
        let below = LOWEST.next_down();
        let above = HIGHEST.next_up();
        let odd_nan = f32::from_bits(0x7fc0_0155);
        for level in Level::available() {
            let mut x = [
                0.0,
                -0.0,
                f32::NEG_INFINITY,
                f32::INFINITY,
                f32::NAN,
                odd_nan,
                below,
                above,
                -104.0,
                -1e30,
                1e30,
                LOWEST,
                HIGHEST,
            ];
            exp_slice(level, &mut x);
            assert_eq!(x[..2], [1.0, 1.0], "{level}");
            assert_eq!(x[2..4], [0.0, f32::INFINITY], "{level}");
            assert!(x[4].is_nan() && x[5].is_nan(), "{level}");
            assert_eq!(x[6..11], [0.0, f32::INFINITY, 0.0, 0.0, f32::INFINITY], "{level}");
            assert!(x[11] >= f32::MIN_POSITIVE && x[12].is_finite(), "{level}: {} {}", x[11], x[12]);

            let mut x = [0.0, 100.0, -100.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
            level.run(Map { values: &mut x, function: Function::Tanh });
            assert_eq!(x[..5], [0.0, 1.0, -1.0, 1.0, -1.0], "{level}");
            assert!(x[5].is_nan(), "{level}");
        }
    }

    #[test]
    fn a_result_does_not_depend_on_its_place_in_the_slice() {
        let values: Vec<f32> = (0..63).map(|i| i as f32 * -0.37).collect();
        for level in Level::available() {
            let mut whole = values.clone();
            exp_slice(level, &mut whole);
            for (i, &x) in values.iter().enumerate() {
                let mut one = [x];
                exp_slice(level, &mut one);
                assert_eq!(one[0].to_bits(), whole[i].to_bits(), "{level}: element {i}");
            }
        }
    }
}
