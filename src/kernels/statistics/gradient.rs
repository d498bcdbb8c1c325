//! The head of a training step: the statistics of each target, and the gradient of a weighted loss with respect to the hidden states
//! and the vocabulary matrix.
//!
//! The loss of a token with logits `z`, `p = softmax(z)`, target `y` and a reference model's distribution `q` is
//! `a (-ln p_y) + b KL(q || p) + c KL(p || q)`. `a`, `b` and `c` may depend on the token's statistics, but are treated as constants.
//! Then
//!
//! ```text
//! dz = a (p - onehot(y)) + b (p - q) + c p (ln p - ln q - KL(p || q))        dh = dz W        dW = dz^T h
//! ```
//!
//! with `dz` multiplied by `1 - (z / cap)^2` under a softcap. Logits are stored for a few hundred tokens at a time and are replaced
//! by their gradient in place: three products, without ever storing tokens by vocabulary (Liger Kernel's chunking, arXiv
//! 2410.10989). The statistics are bit-identical to those of [`head_statistics`](super::head_statistics).

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::check::{check, check_hidden};
use super::divergence::Divergence;
use super::fused::{MAX_TILE_PANELS, SPAN_PANELS, take, tile_panels};
use super::options::HeadOptions;
use super::reference;
use super::running::Running;
use crate::error::{Error, Result};
use crate::kernels::TokenStatistics;
use crate::kernels::cpu::{contiguous, gradient, with_floats};
use crate::kernels::exp::{exp_of_nonpositive, tanh};
use crate::kernels::lanes::{Lanes, for_lanes, load, store};
use crate::kernels::level::{Kernel, Level};
use crate::kernels::matmul::{Matrix, PANEL, Panels, input_gradient, multiply};
use crate::kernels::quantized;

/// The factors of one token's loss terms; zero for terms that do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenLoss {
    /// The factor of `-ln p(target)`.
    pub cross_entropy: f32,
    /// The factor of `KL(reference || model)`.
    pub from_reference: f32,
    /// The factor of `KL(model || reference)`.
    pub to_reference: f32,
}

/// The gradient of a loss with respect to the hidden states, and intermediate results; `N` targets.
pub struct HeadGradient {
    /// The statistics of each target, `[N]`.
    pub statistics: Vec<TokenStatistics>,
    /// The divergences from the reference at each target, `[N]`; zeros without a reference.
    pub divergences: Vec<Divergence>,
    /// `[N, D]`
    pub d_hidden: Tensor,
}

/// The size of the logits that are stored at a time.
const CHUNK_BYTES: usize = 64 << 20;

/// The gradient of `sum_n loss_n` over targets `n`, where `loss(n, statistics)` returns the factors of target `n`. Adds the gradient
/// of a trained `head_vd` to its own. `reference` is the hidden states `[N, D']` and the head of the reference model.
pub fn head_gradient(
    hidden_nd: &Tensor,
    head_vd: &Matrix,
    targets: &[u32],
    options: &HeadOptions,
    reference: Option<(&Tensor, &Matrix)>,
    loss: &(dyn Fn(usize, &TokenStatistics, &Divergence) -> TokenLoss + Sync),
) -> Result<HeadGradient> {
    check(hidden_nd, head_vd, targets, options)?;
    let panels = packed(head_vd)?;
    let reference = match reference {
        None => None,
        Some((hidden, head)) => {
            if check_hidden(hidden, head)? != targets.len() || head.out_features() != head_vd.out_features() {
                return Err(Error::new("the reference model has another vocabulary, or other tokens"));
            }
            Some((contiguous(hidden)?, packed(head)?))
        }
    };
    let hidden_nd = contiguous(hidden_nd)?;
    let (level, width, vocabulary) = (Level::current(), head_vd.in_features(), head_vd.out_features());
    let (chunk, tile) = (chunk_rows(vocabulary), tile_panels(level, &panels) * PANEL);
    let mut statistics = Vec::with_capacity(targets.len());
    let mut divergences = Vec::with_capacity(targets.len());
    let mut d_hidden: Vec<f32> = Vec::with_capacity(targets.len() * width);
    for (i, targets) in targets.chunks(chunk).enumerate() {
        let first = i * chunk;
        let logits = |hidden: &Tensor, head: &Panels| -> Result<Vec<f32>> {
            Ok(with_floats(&hidden.narrow(0, first, targets.len())?, |h| multiply(level, h, targets.len(), head, None))?)
        };
        let mut d_logits = logits(&hidden_nd, &panels)?;
        let mut others = reference.as_ref().map(|(hidden, head)| logits(hidden, head)).transpose()?;
        let rows = d_logits.par_chunks_mut(vocabulary).zip(targets).enumerate().with_max_len(1);
        let of_row = |n: usize, row: &mut [f32], other: Option<&mut [f32]>, target: u32| {
            level.run(Row { row, other, n: first + n, target, tile, options, loss })
        };
        let found: Vec<(TokenStatistics, Divergence)> = match &mut others {
            None => rows.map(|(n, (row, &target))| of_row(n, row, None, target)).collect(),
            Some(others) => {
                let rows = rows.zip(others.par_chunks_mut(vocabulary));
                rows.map(|((n, (row, &target)), other)| of_row(n, row, Some(other), target)).collect()
            }
        };
        drop(others);
        statistics.extend(found.iter().map(|(statistics, _)| *statistics));
        divergences.extend(found.iter().map(|(_, divergence)| *divergence));
        d_hidden.extend(input_gradient(level, &panels, &d_logits, targets.len()));
        if let Some(trained) = head_vd.trained() {
            let hidden = hidden_nd.narrow(0, first, targets.len())?;
            with_floats(&hidden, |hidden| trained.add_gradient(level, hidden, &d_logits, targets.len()))?;
        }
    }
    Ok(HeadGradient { statistics, divergences, d_hidden: gradient(d_hidden, &hidden_nd)? })
}

/// The number of rows whose logits are stored at a time, for a vocabulary of this size.
pub fn chunk_rows(vocabulary: usize) -> usize {
    (CHUNK_BYTES / (4 * vocabulary)).next_multiple_of(8)
}

/// The logits `[N, V]`, including the softcap: for [`chunk_rows`] rows at a time, because they take much memory.
pub fn logits(hidden_nd: &Tensor, head_vd: &Matrix, options: &HeadOptions) -> Result<Vec<f32>> {
    let n_rows = check_hidden(hidden_nd, head_vd)?;
    match (head_vd.panels(), head_vd.blocks()) {
        (Some(panels), _) => logits_of(hidden_nd, n_rows, &panels, options),
        (None, Some(parts)) => {
            let product = |hidden: &[f32]| quantized::multiply(Level::current(), hidden, n_rows, parts, None);
            Ok(bent(with_floats(&contiguous(hidden_nd)?, product)?, head_vd.out_features(), options))
        }
        (None, None) => reference::logits(hidden_nd, head_vd, options),
    }
}

fn logits_of(hidden_nd: &Tensor, n_rows: usize, panels: &Panels, options: &HeadOptions) -> Result<Vec<f32>> {
    let logits = with_floats(&contiguous(hidden_nd)?, |hidden| multiply(Level::current(), hidden, n_rows, panels, None))?;
    Ok(bent(logits, panels.out_features(), options))
}

/// Applies the softcap, if there is one, to rows of logits.
pub fn bent(mut logits: Vec<f32>, vocabulary: usize, options: &HeadOptions) -> Vec<f32> {
    if let Some(cap) = options.softcap {
        logits.par_chunks_mut(vocabulary).for_each(|row| Level::current().run(Bend { row, cap }));
    }
    logits
}

/// The statistics of each target, and the divergences from the model with `reference_logits [N, V]`.
pub fn divergences(
    hidden_nd: &Tensor,
    head_vd: &Matrix,
    targets: &[u32],
    reference_logits: &[f32],
    options: &HeadOptions,
) -> Result<Vec<(TokenStatistics, Divergence)>> {
    check(hidden_nd, head_vd, targets, options)?;
    let vocabulary = head_vd.out_features();
    if reference_logits.len() != targets.len() * vocabulary {
        return Err(Error::new("the reference's logits are of other tokens or of another vocabulary"));
    }
    let Some(panels) = head_vd.panels() else {
        return reference::divergences(hidden_nd, head_vd, targets, reference_logits, options);
    };
    let level = Level::current();
    let tile = tile_panels(level, &panels) * PANEL;
    let own = logits_of(hidden_nd, targets.len(), &panels, options)?;
    let rows = own.par_chunks(vocabulary).zip(reference_logits.par_chunks(vocabulary)).zip(targets);
    let of_row =
        |((row, other), &target): ((&[f32], &[f32]), &u32)| level.run(Compare { row, other, target, tile, top_k: options.top_k });
    Ok(rows.map(of_row).collect())
}

fn packed(head_vd: &Matrix) -> Result<Arc<Panels>> {
    head_vd.panels().ok_or_else(|| Error::new("this head is not packed: training needs the fused kernels"))
}

struct Bend<'a> {
    row: &'a mut [f32],
    cap: f32,
}

impl Kernel for Bend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: by contract.
        unsafe { bend::<V>(self.row, self.cap) }
    }
}

struct Compare<'a> {
    row: &'a [f32],
    other: &'a [f32],
    target: u32,
    /// The words of a tile.
    tile: usize,
    top_k: usize,
}

impl Kernel for Compare<'_> {
    type Output = (TokenStatistics, Divergence);

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> Self::Output {
        let Compare { row, other, target, tile, top_k } = self;
        // SAFETY: by contract.
        unsafe {
            let statistics = statistics::<V>(row, target, tile, top_k);
            let other_log_sum = reference_log_sum::<V>(other, target, tile);
            (statistics, divergence::<V>(row, row[target as usize] - statistics.logprob, other, other_log_sum))
        }
    }
}

/// One token, whose logits are replaced by their gradient.
struct Row<'a> {
    row: &'a mut [f32],
    other: Option<&'a mut [f32]>,
    n: usize,
    target: u32,
    /// The words of a tile.
    tile: usize,
    options: &'a HeadOptions,
    loss: &'a (dyn Fn(usize, &TokenStatistics, &Divergence) -> TokenLoss + Sync),
}

impl Kernel for Row<'_> {
    type Output = (TokenStatistics, Divergence);

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> Self::Output {
        let Row { row, mut other, n, target, tile, options, loss } = self;
        // SAFETY: the instructions are there by contract, in each call.
        unsafe {
            if let Some(cap) = options.softcap {
                bend::<V>(row, cap);
                if let Some(other) = &mut other {
                    bend::<V>(other, cap);
                }
            }
            let statistics = statistics::<V>(row, target, tile, options.top_k);
            let target_logit = row[target as usize];
            let log_sum = target_logit - statistics.logprob;
            let (divergence, other) = match &other {
                None => (Divergence::default(), None),
                Some(other) => {
                    // Any target will do here, because only the sum over all words is needed.
                    let whole = reference_log_sum::<V>(other, target, tile);
                    (divergence::<V>(row, log_sum, other, whole), Some((&**other, whole)))
                }
            };
            let factors = loss(n, &statistics, &divergence);
            let kl = divergence.to_reference;
            gradient_in_place::<V>(row, log_sum, other, &factors, kl, options.softcap);
            row[target as usize] -= factors.cross_entropy * slope(target_logit, options.softcap);
            (statistics, divergence)
        }
    }
}

/// `logit <- cap tanh(logit / cap)`
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn bend<V: Lanes>(row: &mut [f32], cap: f32) {
    let to = row.as_mut_ptr();
    for_lanes::<V>(
        row.len(),
        #[inline(always)]
        // SAFETY: `i + n` never passes the end of the row.
        |i, n| unsafe {
            let bent = tanh(load::<V>(row, i, n).div(V::splat(cap))).mul(V::splat(cap));
            store(bent, to, i, n);
        },
    );
}

/// The statistics of one row of logits, in the spans and tiles (of `tile` words) of the fused head, and therefore with the same
/// bits.
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn statistics<V: Lanes>(row: &[f32], target: u32, tile: usize, top_k: usize) -> TokenStatistics {
    /// An aligned tile.
    #[repr(align(64))]
    struct Tile([f32; MAX_TILE_PANELS * PANEL]);
    let mut buffer = Tile([0.0; MAX_TILE_PANELS * PANEL]);
    let target_logit = row[target as usize];
    let mut whole: Option<Running> = None;
    for (i, span) in row.chunks(SPAN_PANELS * PANEL).enumerate() {
        let mut running = Running::new(target_logit, top_k.min(row.len()), 0);
        for (j, words) in span.chunks(tile).enumerate() {
            let logits = &mut buffer.0[..words.len().next_multiple_of(PANEL)];
            logits[..words.len()].copy_from_slice(words);
            let first_id = i * SPAN_PANELS * PANEL + j * tile;
            // SAFETY: whole panels, whose width is divisible by every vector length; the instructions are there by contract.
            unsafe { take::<V>(&mut running, logits, words.len(), first_id, target, target_logit) };
        }
        whole = Some(match whole {
            None => running,
            Some(before) => before.join(&running),
        });
    }
    whole.map_or_else(TokenStatistics::nan, |whole| whole.finish(target, target_logit))
}

/// The log-sum-exp of a reference's logits.
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn reference_log_sum<V: Lanes>(other: &[f32], target: u32, tile: usize) -> f32 {
    // SAFETY: by contract.
    other[target as usize] - unsafe { statistics::<V>(other, target, tile, 1) }.logprob
}

/// Both divergences between `p = exp(row - log_sum)` and `q = exp(other - other_log_sum)`.
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn divergence<V: Lanes>(row: &[f32], log_sum: f32, other: &[f32], other_log_sum: f32) -> Divergence {
    /// The numbers that are summed in f32 before the sum is added in f64.
    const BLOCK: usize = 2048;
    let (mut from_reference, mut to_reference) = (0.0, 0.0);
    for (row, other) in row.chunks(BLOCK).zip(other.chunks(BLOCK)) {
        // SAFETY: `i + n` never passes the end of either block; the instructions are there by contract.
        unsafe {
            let (mut from, mut to) = (V::splat(0.0), V::splat(0.0));
            for_lanes::<V>(
                row.len(),
                #[inline(always)]
                |i, n| {
                    let ln_p = V::splat(NO_MASS).max(load::<V>(row, i, n).sub(V::splat(log_sum)));
                    let ln_q = V::splat(NO_MASS).max(load::<V>(other, i, n).sub(V::splat(other_log_sum)));
                    let difference = ln_p.sub(ln_q).keep(0, n, V::splat(0.0));
                    to = exp_of_nonpositive(ln_p).mul_add(difference, to);
                    from = V::splat(0.0).sub(exp_of_nonpositive(ln_q)).mul_add(difference, from);
                },
            );
            from_reference += f64::from(from.sum());
            to_reference += f64::from(to.sum());
        }
    }
    // Rounding can make the divergence of equal distributions negative.
    Divergence { from_reference: from_reference.max(0.0) as f32, to_reference: to_reference.max(0.0) as f32 }
}

/// Its `exp` is 0 in f32, and so is the product with any logarithm; differences of -inf would be NaN.
const NO_MASS: f32 = -100.0;

/// `row <- (a p + b (p - q) + c p (ln p - ln q - kl)) slope`: everything except the target's own term.
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn gradient_in_place<V: Lanes>(
    row: &mut [f32],
    log_sum: f32,
    other: Option<(&[f32], f32)>,
    factors: &TokenLoss,
    kl: f32,
    softcap: Option<f32>,
) {
    let to = row.as_mut_ptr();
    for_lanes::<V>(
        row.len(),
        #[inline(always)]
        // SAFETY: `i + n` never passes the end of either row, which have the same length; the instructions are there by contract.
        |i, n| unsafe {
            let z = load::<V>(row, i, n);
            let ln_p = V::splat(NO_MASS).max(z.sub(V::splat(log_sum)));
            let p = exp_of_nonpositive(ln_p);
            let mut gradient = p.mul(V::splat(factors.cross_entropy));
            if let Some((other, other_log_sum)) = other {
                let ln_q = V::splat(NO_MASS).max(load::<V>(other, i, n).sub(V::splat(other_log_sum)));
                gradient = p.sub(exp_of_nonpositive(ln_q)).mul_add(V::splat(factors.from_reference), gradient);
                let beyond = ln_p.sub(ln_q).sub(V::splat(kl));
                gradient = p.mul(beyond).mul_add(V::splat(factors.to_reference), gradient);
            }
            if let Some(cap) = softcap {
                let bent = z.mul(V::splat(1.0 / cap));
                gradient = gradient.mul(V::splat(1.0).sub(bent.mul(bent)));
            }
            store(gradient, to, i, n);
        },
    );
}

/// The slope of the softcap at a logit after capping; 1 without a softcap.
fn slope(logit: f32, softcap: Option<f32>) -> f32 {
    softcap.map_or(1.0, |cap| 1.0 - (logit / cap).powi(2))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::statistics::head_statistics;
    use crate::kernels::testing::{DTYPES, close, noise};
    use crate::kernels::{Dtype, Kernels};

    const WIDTH: usize = 19;

    fn matrix(values: &[f32], rows: usize) -> Matrix {
        let tensor = Tensor::from_slice(values, (rows, WIDTH), &Device::Cpu).unwrap();
        Matrix::new([Ok(tensor)], Dtype::F32, Kernels::Fused).unwrap()
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (values.len() / WIDTH, WIDTH), &Device::Cpu).unwrap()
    }

    fn factors(n: usize) -> TokenLoss {
        let n = n as f32;
        TokenLoss { cross_entropy: 1.0 + n, from_reference: 0.5 * n, to_reference: 2.0 - n }
    }

    /// The loss in f64, by its definition.
    fn loss(h: &[f64], w: &[f64], q_logits: &[f64], targets: &[u32], cap: Option<f64>) -> f64 {
        let log_softmax = |z: Vec<f64>| {
            let largest = z.iter().copied().fold(f64::MIN, f64::max);
            let log_sum = largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
            z.into_iter().map(|z| z - log_sum).collect::<Vec<f64>>()
        };
        let vocabulary = w.len() / WIDTH;
        let bend = |z: f64| cap.map_or(z, |cap| cap * (z / cap).tanh());
        let of_token = |n: usize| {
            let h = &h[n * WIDTH..][..WIDTH];
            let z = w.chunks(WIDTH).map(|w| bend(w.iter().zip(h).map(|(w, h)| w * h).sum())).collect();
            let ln_p = log_softmax(z);
            let ln_q = log_softmax(q_logits[n * vocabulary..][..vocabulary].iter().map(|&z| bend(z)).collect());
            let kl = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>();
            let factors = factors(n);
            f64::from(factors.cross_entropy) * -ln_p[targets[n] as usize]
                + f64::from(factors.from_reference) * kl(&ln_q, &ln_p)
                + f64::from(factors.to_reference) * kl(&ln_p, &ln_q)
        };
        (0..targets.len()).map(of_token).sum()
    }

    #[test]
    fn gradients_are_finite_differences_of_the_definition() {
        for (vocabulary, softcap) in [(2, None), (50, None), (401, None), (50, Some(3.0f32))] {
            let targets = [0, 1, vocabulary as u32 - 1, 1];
            let (h, w) = (noise(4 * WIDTH, 1.0, 1), noise(vocabulary * WIDTH, 1.0, 2));
            let (h_other, w_other) = (noise(4 * WIDTH, 1.0, 3), noise(vocabulary * WIDTH, 1.0, 4));
            let mut head = matrix(&w, vocabulary);
            let trained = head.train(Dtype::F32).unwrap();
            let options = HeadOptions { top_k: 20, softcap };
            let other = (tensor(&h_other), matrix(&w_other, vocabulary));
            let found =
                head_gradient(&tensor(&h), &head, &targets, &options, Some((&other.0, &other.1)), &|n, _, _| factors(n)).unwrap();
            assert_eq!(found.statistics, head_statistics(&tensor(&h), &head, &targets, &options).unwrap());

            let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
            let product = |h: &[f32], w: &[f32]| -> Vec<f64> {
                let dot = |h: &[f32], w: &[f32]| h.iter().zip(w).map(|(&h, &w)| f64::from(h) * f64::from(w)).sum::<f64>();
                h.chunks(WIDTH).flat_map(|h| w.chunks(WIDTH).map(move |w| dot(h, w))).collect()
            };
            let q_logits = product(&h_other, &w_other);
            let cap = softcap.map(f64::from);
            let difference = |h: &mut Vec<f64>, w: &mut Vec<f64>, of_h: bool, i: usize| {
                const STEP: f64 = 1e-5;
                let mut at = |step: f64| {
                    let values = if of_h { &mut *h } else { &mut *w };
                    values[i] += step;
                    let loss = loss(h, w, &q_logits, &targets, cap);
                    let values = if of_h { &mut *h } else { &mut *w };
                    values[i] -= step;
                    loss
                };
                (at(STEP) - at(-STEP)) / (2.0 * STEP)
            };
            let (mut h64, mut w64) = (wide(&h), wide(&w));
            let expected: Vec<f64> = (0..h.len()).map(|i| difference(&mut h64, &mut w64, true, i)).collect();
            let d_hidden = found.d_hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            // Sums of up to 401 terms of order 1 in f32.
            close(&d_hidden, &expected, 1e-4, "dh");
            let expected: Vec<f64> = (0..w.len()).map(|i| difference(&mut h64, &mut w64, false, i)).collect();
            let d_head = trained.gradient(|gradient| trained.part_of(gradient, 0..vocabulary, 0..trained.in_features()));
            close(&d_head, &expected, 1e-4, "dW");
        }
    }

    #[test]
    fn a_model_is_no_distance_from_itself() {
        let (h, w) = (noise(3 * WIDTH, 1.0, 5), noise(60 * WIDTH, 1.0, 6));
        let (hidden, head) = (tensor(&h), matrix(&w, 60));
        let factors = TokenLoss { cross_entropy: 0.0, from_reference: 1.0, to_reference: 1.0 };
        let options = HeadOptions::default();
        let found = head_gradient(&hidden, &head, &[1, 2, 3], &options, Some((&hidden, &head)), &|_, _, _| factors).unwrap();
        assert_eq!(found.divergences, [Divergence::default(); 3]);
        assert!(found.d_hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|g| g.abs() < 1e-7));
    }

    #[test]
    fn statistics_have_the_bits_of_scoring_in_either_precision() {
        // More than one span, and a partial tile.
        let vocabulary = SPAN_PANELS * PANEL + 1000;
        let (h, w) = (noise(9 * WIDTH, 2.0, 7), noise(vocabulary * WIDTH, 1.0, 8));
        let targets: Vec<u32> = (0..9).map(|n| n * 2800).collect();
        for dtype in DTYPES {
            let mut head = matrix(&w, vocabulary);
            head.train(dtype).unwrap();
            let options = HeadOptions::default();
            let found = head_gradient(&tensor(&h), &head, &targets, &options, None, &|_, _, _| TokenLoss::default()).unwrap();
            assert_eq!(found.statistics, head_statistics(&tensor(&h), &head, &targets, &options).unwrap());
        }
    }
}
