//! Attention over a cache: the keys and values of growing sequences, in the packed form that the kernels read.
//!
//! A page holds 16 positions of one sequence, like a granule of the packed form, with the same boundaries. A token that is computed alone
//! therefore sees its keys in the same groups as within its whole sequence, and its result is bit-identical. Sequences with a common
//! beginning may share the pages that contain nothing else.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::arithmetic::{Arithmetic, AttentionKernel};
use super::factors::Factors;
use super::fused;
use super::pack::{key_size, row_size};
use super::packed::{Packed, padded};
use super::plan::GRANULE;
use super::problem::Problem;
use super::shape::AttentionShape;
use super::strip::as_words;
use crate::error::{Error, Result};
use crate::kernels::Dtype;
use crate::kernels::cpu::Shared;
use crate::kernels::level::Level;
use crate::kernels::rotary::Rotary;

/// The number of positions in a page.
pub const PAGE: usize = GRANULE;

/// The keys and values of one layer.
pub struct LayerCache {
    keys: Packed,
    values: Packed,
    n_pages: usize,
    kv_heads: usize,
    head_dim: usize,
    level: Level,
    factors: Factors,
}

/// Tokens of a batch that continue one sequence.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// Rows of the batch; the stretches of a batch cover `0..T` in order.
    pub tokens: Range<usize>,
    /// The position of the first of these tokens in the sequence, from 0.
    pub position: usize,
    /// The pages of the sequence: page `i` starts at position `i * PAGE`. There may be more than are in use yet.
    pub pages: Arc<[usize]>,
    /// The index of the sequence, for layers that keep a state per sequence ([`DeltaCache`](crate::kernels::delta::DeltaCache)).
    pub sequence: usize,
}

impl LayerCache {
    /// A layer's cache with `n_pages` empty pages; `dtype` is the model's precision.
    pub fn new(shape: &AttentionShape, n_pages: usize, dtype: Dtype) -> LayerCache {
        LayerCache::at(Level::current(), shape, n_pages, dtype)
    }

    fn at(level: Level, shape: &AttentionShape, n_pages: usize, dtype: Dtype) -> LayerCache {
        let AttentionShape { kv_heads, head_dim, .. } = *shape;
        let factors = Factors::of(level, dtype);
        LayerCache {
            keys: Packed::zeros(n_pages, kv_heads, key_size(factors, head_dim)),
            values: Packed::zeros(n_pages, kv_heads, row_size(factors, head_dim)),
            n_pages,
            kv_heads,
            head_dim,
            level,
            factors,
        }
    }

    /// The memory that a page takes, in bytes.
    pub fn page_bytes(shape: &AttentionShape, dtype: Dtype) -> usize {
        let factors = Factors::of(Level::current(), dtype);
        let words = key_size(factors, shape.head_dim) + row_size(factors, shape.head_dim);
        shape.kv_heads * words * size_of::<u32>()
    }

    /// Stores the keys and values of the stretches' tokens in their pages.
    fn store(&mut self, problem: &Problem, stretches: &[Stretch]) {
        let of_stretch = |stretch: &Stretch| {
            let (begin, end) = (stretch.position, stretch.position + stretch.tokens.len());
            let first_token = stretch.tokens.start;
            let pages = stretch.pages.clone();
            (begin / GRANULE..end.div_ceil(GRANULE)).map(move |page| {
                let positions = begin.max(page * GRANULE)..end.min((page + 1) * GRANULE);
                let token = first_token + positions.start - begin;
                Share { page: pages[page], token, lanes: positions.start % GRANULE..positions.end - page * GRANULE }
            })
        };
        let shares: Vec<Share> = stretches.iter().filter(|stretch| !stretch.tokens.is_empty()).flat_map(of_stretch).collect();
        let (keys, values) = (Shared::of(&mut self.keys.words), Shared::of(&mut self.values.words));
        shares.par_iter().with_min_len(8).for_each(|share| {
            problem.run(Store { problem, share, keys: &keys, values: &values });
        });
    }
}

/// The tokens that one call adds to one page.
struct Share {
    page: usize,
    /// The first token, and the lanes of this and the following tokens.
    token: usize,
    lanes: Range<usize>,
}

struct Store<'a> {
    problem: &'a Problem<'a>,
    share: &'a Share,
    keys: &'a Shared<u32>,
    values: &'a Shared<u32>,
}

impl AttentionKernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<S>, const S: usize>(self) {
        let Store { problem, share, keys, values } = self;
        let AttentionShape { heads, kv_heads, head_dim, .. } = *problem.shape;
        let width = padded(head_dim);
        let (n_keys, n_values) = (key_size(problem.factors, head_dim), row_size(problem.factors, head_dim));
        let mut row = vec![0.0; width];
        // The row of a value, with the other rows of its words, and the words.
        let (mut rows, mut words) = (vec![0.0; A::PER_WORD * width], vec![0u32; width]);
        for kv_head in 0..kv_heads {
            let place = share.page * kv_heads + kv_head;
            // SAFETY: each page belongs to one share (`check`), and its words are initialised, at least with zeros.
            let (keys, values) = unsafe {
                (
                    std::slice::from_raw_parts_mut(keys.at(place * n_keys, n_keys), n_keys),
                    std::slice::from_raw_parts_mut(values.at(place * n_values, n_values), n_values),
                )
            };
            if share.lanes.start == 0 {
                // Clears what an earlier sequence left: an infinity times a weight of 0 would be NaN.
                values.fill(0);
            }
            for (i, lane) in share.lanes.clone().enumerate() {
                let token = share.token + i;
                let columns = &problem.qkv[token * problem.shape.columns()..][..problem.shape.columns()];
                let (numbers, padding) = row.split_at_mut(head_dim);
                numbers.copy_from_slice(&columns[(heads + kv_head) * head_dim..][..head_dim]);
                padding.fill(0.0);
                problem.rotary.rotate_head(numbers, problem.positions[token], 1.0);
                // SAFETY: the instructions are there by contract; a padded row is whole granules.
                unsafe { A::finely(&mut row) };
                for (word, key) in as_words(&row).iter().zip(keys.chunks_exact_mut(GRANULE)) {
                    key[lane] = *word;
                }
                rows.fill(0.0);
                rows[lane % A::PER_WORD * width..][..head_dim]
                    .copy_from_slice(&columns[(heads + kv_heads + kv_head) * head_dim..][..head_dim]);
                // SAFETY: as above.
                unsafe { A::across(rows.as_ptr(), width, width, words.as_mut_ptr()) };
                // The second number of a word is added to the first; when the first is written, the second is zero.
                let kept = (1u32 << (16 * (lane % A::PER_WORD))) - 1;
                let to = &mut values[lane / A::PER_WORD * width..][..width];
                to.iter_mut().zip(&words).for_each(|(to, word)| *to = *to & kept | word);
            }
        }
    }
}

/// Like [`attention`](super::attention), for tokens whose sequences began in earlier calls; their keys and values are added to the cache.
pub(super) fn attention(
    qkv: &[f32],
    stretches: &[Stretch],
    cache: &mut LayerCache,
    rotary: &Rotary,
    shape: &AttentionShape,
    sinks: Option<&[f32]>,
    dtype: Dtype,
) -> Result<Vec<f32>> {
    let tokens = qkv.len() / shape.columns();
    let positions = positions_of(stretches, tokens)?;
    rotary.check(shape.head_dim, &positions)?;
    check(stretches, cache, shape, dtype)?;
    let problem =
        Problem { qkv, segments: &[], positions: &positions, rotary, shape, sinks, level: cache.level, factors: cache.factors };
    cache.store(&problem, stretches);
    let views: Vec<fused::View> =
        stretches.iter().map(|stretch| fused::View { tokens: stretch.tokens.clone(), seen: &stretch.pages }).collect();
    Ok(fused::over(&problem, &views, &cache.keys, &cache.values).0)
}

/// Each token's position in its sequence. Refuses stretches that do not cover `0..tokens` in order.
pub fn positions_of(stretches: &[Stretch], tokens: usize) -> Result<Vec<usize>> {
    let mut positions = Vec::with_capacity(tokens);
    for stretch in stretches {
        if stretch.tokens.start != positions.len() || stretch.tokens.end < stretch.tokens.start {
            return Err(Error::new(format!("stretch {:?} does not start at token {}", stretch.tokens, positions.len())));
        }
        positions.extend(stretch.position..stretch.position + stretch.tokens.len());
    }
    match positions.len() == tokens {
        true => Ok(positions),
        false => Err(Error::new(format!("the stretches cover {} tokens of a batch of {tokens}", positions.len()))),
    }
}

/// Checks that the cache was made for this shape and precision, and contains the pages.
fn check(stretches: &[Stretch], cache: &LayerCache, shape: &AttentionShape, dtype: Dtype) -> Result<()> {
    if (cache.kv_heads, cache.head_dim) != (shape.kv_heads, shape.head_dim) {
        return Err(Error::new("the cache was made for heads of another number or width"));
    }
    if cache.factors != Factors::of(cache.level, dtype) {
        return Err(Error::new("the cache was made for a model of another precision"));
    }
    check_pages(stretches, cache.n_pages, GRANULE)
}

/// Checks that every position has a page in a cache of `n_pages` pages of `page` positions, and that no page is written for two
/// sequences.
pub fn check_pages(stretches: &[Stretch], n_pages: usize, page: usize) -> Result<()> {
    let mut written = Vec::new();
    for stretch in stretches {
        let end = (stretch.position + stretch.tokens.len()).div_ceil(page);
        if end > stretch.pages.len() || stretch.pages.iter().any(|&page| page >= n_pages) {
            return Err(Error::new(format!("a sequence of {end} pages lacks some of them in the cache")));
        }
        if !stretch.tokens.is_empty() {
            written.extend_from_slice(&stretch.pages[stretch.position / page..end]);
        }
    }
    written.sort_unstable();
    match written.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::new(format!("page {} of the cache would be written twice", pair[0]))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::arithmetics;
    use super::*;
    use crate::kernels::Segment;
    use crate::kernels::rotary::RotaryStyle;
    use crate::kernels::testing::noise;

    fn dtype(factors: Factors) -> Dtype {
        if factors == Factors::F32 { Dtype::F32 } else { Dtype::Bf16 }
    }

    /// A sequence that is read in pieces of any size, beside others and after a shared beginning, gives the same bits as when read at
    /// once, whatever the pages held before.
    #[test]
    fn pieces_give_the_bits_of_the_whole() {
        for (level, factors) in arithmetics() {
            for (window, softcap, head_dim) in
                [(None, None, 8), (Some(5), None, 12), (Some(300), Some(3.0), 16), (Some(90), None, 24)]
            {
                // The last case has attention sinks.
                let sinks = (head_dim == 24).then_some(&[0.5f32, -1.0, 3.0, 0.0, 1.0, 2.0][..]);
                let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim, scale: 0.4, window, softcap };
                check_pieces(level, factors, &shape, sinks);
            }
        }
    }

    fn check_pieces(level: Level, factors: Factors, shape: &AttentionShape, sinks: Option<&[f32]>) {
        let frequencies: Vec<f64> = (0..4).map(|i| 100f64.powf(-f64::from(i) / 4.0)).collect();
        let rotary = Rotary::new(&frequencies, 704, RotaryStyle::Half, 1.0);
        let (lengths, columns) = ([650usize, 37, 1], shape.columns());
        let mut sequences: Vec<Vec<f32>> =
            lengths.iter().enumerate().map(|(i, n)| noise(n * columns, 1.0, i as u64 + 1)).collect();
        // The second sequence starts with the same two pages as the first.
        let shared = 2 * PAGE * columns;
        let beginning = sequences[0][..shared].to_vec();
        sequences[1][..shared].copy_from_slice(&beginning);
        let whole = |qkv: &Vec<f32>| {
            let n = qkv.len() / columns;
            let segments = &[Segment { tokens: 0..n, context: Vec::new() }];
            let (positions, rotary) = (&(0..n).collect::<Vec<_>>(), &rotary);
            fused::attention(&Problem { qkv, segments, positions, rotary, shape, sinks, level, factors }).0
        };
        let whole: Vec<Vec<f32>> = sequences.iter().map(whole).collect();
        let mut cache = LayerCache::at(level, shape, 60, dtype(factors));
        let mut add = |rows: &[f32], stretches: &[Stretch]| {
            attention(rows, stretches, &mut cache, &rotary, shape, sinks, dtype(factors)).unwrap()
        };
        // An earlier sequence used the pages.
        let all: Arc<[usize]> = (0..40).chain(55..59).collect();
        let n = all.len() * PAGE;
        add(&vec![f32::INFINITY; n * columns], &[Stretch { tokens: 0..n, position: 0, pages: all, sequence: 3 }]);
        // The pages are in arbitrary order; the second sequence takes its first two from the first one.
        let pages: [Arc<[usize]>; 3] = [(0..41).map(|i| 59 - i).collect(), vec![59, 58, 3].into(), vec![7].into()];
        let mut done = [0, 2 * PAGE, 0];
        let mut found: [Vec<f32>; 3] = Default::default();
        for sizes in [[33, 1, 0], [1, 0, 0], [14, 1, 1], [1, 1, 0], [1, 2, 0], [600, 0, 0]] {
            let (mut stretches, mut rows) = (Vec::new(), Vec::new());
            for (i, &n) in sizes.iter().enumerate() {
                let begin = rows.len() / columns;
                stretches.push(Stretch { tokens: begin..begin + n, position: done[i], pages: pages[i].clone(), sequence: i });
                rows.extend_from_slice(&sequences[i][done[i] * columns..(done[i] + n) * columns]);
                done[i] += n;
            }
            let y = add(&rows, &stretches);
            let width = shape.heads * shape.head_dim;
            for (i, stretch) in stretches.iter().enumerate() {
                found[i].extend(&y[stretch.tokens.start * width..stretch.tokens.end * width]);
            }
        }
        assert_eq!(done, lengths);
        let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let what = format!("{level} {factors:?} {shape:?}");
        assert_eq!(bits(&found[0]), bits(&whole[0]), "{what}");
        assert_eq!(bits(&found[1]), bits(&whole[1][2 * PAGE * shape.heads * shape.head_dim..]), "{what}");
        assert_eq!(bits(&found[2]), bits(&whole[2]), "{what}");
    }

    #[test]
    fn a_page_has_one_writer_and_every_position_a_page() {
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 4, scale: 1.0, window: None, softcap: None };
        let rotary = Rotary::new(&[1.0], 100, RotaryStyle::Half, 1.0);
        let mut cache = LayerCache::at(Level::Portable, &shape, 3, Dtype::F32);
        let mut run = |stretches: &[Stretch]| {
            let n = stretches.iter().map(|stretch| stretch.tokens.len()).sum::<usize>();
            let qkv = vec![0.0; n * shape.columns()];
            attention(&qkv, stretches, &mut cache, &rotary, &shape, None, Dtype::F32)
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        let stretch = |tokens: Range<usize>, position: usize, pages: &[usize]| Stretch {
            tokens,
            position,
            pages: pages.into(),
            sequence: 0,
        };
        assert_eq!(run(&[stretch(0..3, 14, &[0, 1]), stretch(3..4, 16, &[0, 2])]), Ok(()));
        for (stretches, message) in [
            (vec![stretch(0..3, 14, &[0, 1]), stretch(3..4, 0, &[1])], "written twice"),
            (vec![stretch(0..3, 14, &[0])], "lacks some"),
            (vec![stretch(0..1, 0, &[3])], "lacks some"),
            (vec![stretch(1..2, 0, &[0])], "does not start"),
            (vec![stretch(0..1, 100, &[0, 0, 0, 0, 0, 0, 0])], "position 100"),
        ] {
            assert!(run(&stretches).unwrap_err().contains(message), "{stretches:?}");
        }
    }

    #[test]
    fn a_cache_is_for_one_precision() {
        let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 4, scale: 1.0, window: None, softcap: None };
        let rotary = Rotary::new(&[1.0], 9, RotaryStyle::Half, 1.0);
        for (level, factors) in arithmetics().into_iter().filter(|(_, factors)| *factors != Factors::F32) {
            let mut cache = LayerCache::at(level, &shape, 1, Dtype::F32);
            let stretches = [Stretch { tokens: 0..1, position: 0, pages: vec![0].into(), sequence: 0 }];
            let error = attention(&[0.0; 12], &stretches, &mut cache, &rotary, &shape, None, dtype(factors)).unwrap_err();
            assert!(error.to_string().contains("another precision"), "{level}: {error}");
        }
    }
}
