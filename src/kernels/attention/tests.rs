//! Compares attention with the formula in f64: odd sizes, trees of segments, windows, every level.
#![allow(clippy::single_range_in_vec_init, reason = "a context is a list of ranges")]

use candle_core::{Device, Tensor, Var};

use super::*;
use crate::kernels::rotary::RotaryStyle;
use crate::kernels::testing::{close, implementations, lengths, near, noise};

fn segment(tokens: std::ops::Range<usize>, context: Vec<std::ops::Range<usize>>) -> Segment {
    Segment { tokens, context }
}

/// Sequences of the given lengths that share nothing.
fn sequences(lengths: &[usize]) -> Vec<Segment> {
    let mut end = 0;
    let next = |n: &usize| {
        end += n;
        segment(end - n..end, vec![])
    };
    lengths.iter().map(next).collect()
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window: None, softcap: None }
}

/// The frequencies of `pairs` pairs with the usual base 10000.
fn frequencies(pairs: usize) -> Vec<f64> {
    (0..pairs).map(|i| 10000f64.powf(-(i as f64) / pairs as f64)).collect()
}

/// The formula, token by token, in f64, rounded where `factors` rounds.
fn truth(
    qkv: &[f32],
    segments: &[Segment],
    rotary: (&[f64], RotaryStyle),
    shape: &AttentionShape,
    sinks: Option<&[f32]>,
    factors: Factors,
) -> Vec<f64> {
    let rounded = |x: f64| if factors == Factors::F32 { x } else { half::bf16::from_f64(x).to_f64() };
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let columns = shape.columns();
    let head = |token: usize, head: usize| -> Vec<f64> {
        qkv[token * columns + head * head_dim..][..head_dim].iter().map(|&x| f64::from(x)).collect()
    };
    let turned = |token: usize, i: usize, position: usize| {
        let mut x = head(token, i);
        for (pair, frequency) in rotary.0.iter().enumerate() {
            let (a, b) = match rotary.1 {
                RotaryStyle::Half => (pair, pair + rotary.0.len()),
                RotaryStyle::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
        }
        let scale = if i < heads { f64::from(shape.scale) } else { 1.0 };
        x.into_iter().map(|x| x * scale).collect::<Vec<f64>>()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut output = Vec::new();
    // A key is rotated by its own position, whichever token sees it.
    let positions = positions(segments, qkv.len() / columns).unwrap();
    let keys: Vec<Vec<Vec<f64>>> =
        (0..positions.len()).map(|t| (0..kv_heads).map(|g| turned(t, heads + g, positions[t])).collect()).collect();
    for segment in segments {
        for token in segment.tokens.clone() {
            let context = segment.context.iter().flat_map(|range| range.clone());
            let seen: Vec<usize> = context.chain(segment.tokens.start..=token).collect();
            let window = shape.window.unwrap_or(seen.len()).min(seen.len());
            let seen = &seen[seen.len() - window..];
            for h in 0..heads {
                let g = h / (heads / kv_heads);
                let query = turned(token, h, positions[token]);
                let score = |&t: &usize| {
                    let score = dot(&query, &keys[t][g]);
                    shape.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let scores: Vec<f64> = seen.iter().map(score).collect();
                let sink = sinks.map_or(f64::NEG_INFINITY, |sinks| sinks[h].into());
                let maximum = scores.iter().copied().fold(sink, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| rounded((s - maximum).exp())).collect();
                let sum = weights.iter().sum::<f64>() + (sink - maximum).exp();
                let mut row = vec![0.0; head_dim];
                for (&t, weight) in seen.iter().zip(&weights) {
                    let values = head(t, heads + kv_heads + g);
                    row.iter_mut().zip(values).for_each(|(x, v)| *x += weight / sum * rounded(v));
                }
                output.extend(row);
            }
        }
    }
    output
}

/// Compares every level and the reference with the formula. Scores of size 3 carry a relative error of 1e-6 into the weights.
fn check(segments: &[Segment], pairs: usize, style: RotaryStyle, shape: &AttentionShape) {
    let tokens = segments.last().unwrap().tokens.end;
    let qkv = noise(tokens * shape.columns(), 2.0, tokens as u64);
    let frequencies = frequencies(pairs);
    let rotary = Rotary::new(&frequencies, tokens, style, 1.0);
    let positions = positions(segments, tokens).unwrap();
    let tensor = Tensor::from_slice(&qkv, (tokens, shape.columns()), &Device::Cpu).unwrap();
    for sinks in [None, Some(sinks(shape))] {
        let sinks = sinks.as_deref();
        let what = format!("{tokens} tokens {shape:?} {sinks:?}");
        let expected_of = |factors| truth(&qkv, segments, (&frequencies, style), shape, sinks, factors);
        let (expected, mut expected_of_pairs) = (expected_of(Factors::F32), None);
        for (level, factors) in arithmetics() {
            let problem = Problem { qkv: &qkv, segments, positions: &positions, rotary: &rotary, shape, sinks, level, factors };
            let (got, what) = (fused::attention(&problem).0, format!("{level} {factors:?} {what}"));
            if factors == Factors::F32 {
                close(&got, &expected, 1e-5, &what);
            } else {
                close_but_for_rounding(&got, expected_of_pairs.get_or_insert_with(|| expected_of(factors)), &what);
            }
        }
        let sinks = sinks.map(|sinks| Tensor::new(sinks, &Device::Cpu).unwrap());
        let heads = Heads { shape, rotary: &rotary, sinks: sinks.as_ref(), dtype: Dtype::F32 };
        for kernels in implementations() {
            let got = attention(&tensor, &segments.into(), &heads, kernels).unwrap().read;
            close(&got.flatten_all().unwrap().to_vec1().unwrap(), &expected, 1e-5, &format!("{kernels:?} {what}"));
        }
    }
}

/// All levels with f32 factors, and with bf16 factors where the level uses these.
pub(super) fn arithmetics() -> Vec<(Level, Factors)> {
    let of_level = |level| [Dtype::F32, Dtype::Bf16].map(|dtype| (level, Factors::of(level, dtype)));
    let mut all: Vec<_> = Level::available().into_iter().flat_map(of_level).collect();
    all.dedup();
    all
}

/// In bf16 a weight that f32 and f64 round to different sides of a boundary differs by one part in 256, and so does one that was rounded
/// relative to an earlier maximum: this is rare, and small on average.
fn close_but_for_rounding(got: &[f32], expected: &[f64], what: &str) {
    close(got, expected, 8e-3, what);
    let errors: f64 = got.iter().zip(expected).map(|(got, expected)| (f64::from(*got) - expected).abs()).sum();
    let size: f64 = expected.iter().map(|x| x.abs()).sum();
    assert!(errors < 2e-3 * size, "{what}: {} of the size on the mean", errors / size);
}

/// Logits of sinks from far below the scores, where a sink takes nothing, to far above, where it takes nearly everything.
fn sinks(shape: &AttentionShape) -> Vec<f32> {
    (0..shape.heads).map(|head| [0.5, -30.0, 12.0, -2.0, 3.0][head % 5]).collect()
}

#[test]
fn by_hand() {
    // The keys are equal, so each token averages the values that it sees: 1; (1 + 3) / 2; (1 + 3 + 8) / 3.
    let qkv = Tensor::new(&[[0f32, 1.0, 1.0], [5.0, 1.0, 3.0], [-5.0, 1.0, 8.0]], &Device::Cpu).unwrap();
    let rotary = Rotary::new(&[], 0, RotaryStyle::Half, 1.0);
    for kernels in implementations() {
        let heads = Heads { shape: &shape(1, 1, 1), rotary: &rotary, sinks: None, dtype: Dtype::F32 };
        let y = attention(&qkv, &sequences(&[3]).into(), &heads, kernels).unwrap().read;
        close(&y.flatten_all().unwrap().to_vec1().unwrap(), &[1.0, 2.0, 4.0], 1e-6, "by hand");
    }
    // Scores of 0 and a sink of ln 2, which counts as two tokens: 1 / 3; (1 + 3) / 4; (1 + 3 + 8) / 5.
    let qkv = Tensor::new(&[[0f32, 1.0, 1.0], [0.0, 1.0, 3.0], [0.0, 1.0, 8.0]], &Device::Cpu).unwrap();
    let sinks = Tensor::new(&[2f32.ln()], &Device::Cpu).unwrap();
    for kernels in implementations() {
        let segments = sequences(&[3]).into();
        let heads = Heads { shape: &shape(1, 1, 1), rotary: &rotary, sinks: Some(&sinks), dtype: Dtype::F32 };
        let attended = attention(&qkv, &segments, &heads, kernels).unwrap();
        close(&attended.read.flatten_all().unwrap().to_vec1().unwrap(), &[1.0 / 3.0, 1.0, 12.0 / 5.0], 1e-6, "sinks by hand");
        // The gradient of the first output only: the sink's share 2 / 3 times -1 / 3.
        let dy = Tensor::new(&[[1f32], [0.0], [0.0]], &Device::Cpu).unwrap();
        let (_, d_sinks) = attention_backward(&qkv, &segments, &heads, &attended, &dy).unwrap();
        close(&d_sinks.unwrap(), &[-2.0 / 9.0], 1e-6, "sinks by hand");
    }
}

#[test]
fn lengths_around_every_boundary() {
    for n in [1, 2, 5, 6, 15, 16, 17, 31, 33, 47, 48, 49, 63, 255, 256, 257, 577] {
        check(&sequences(&[n]), 8, RotaryStyle::Half, &shape(3, 1, 16));
    }
}

#[test]
fn groups_and_widths() {
    for (heads, kv_heads) in [(1, 1), (3, 3), (3, 1), (9, 3), (9, 1), (14, 2), (64, 1)] {
        check(&sequences(&[37, 1, 16, 70]), 8, RotaryStyle::Half, &shape(heads, kv_heads, 32));
    }
    for head_dim in [1, 2, 15, 16, 17, 48, 63, 64, 65, 80, 128, 256] {
        check(&sequences(&[20, 65]), head_dim / 2, RotaryStyle::Half, &shape(2, 1, head_dim));
    }
}

#[test]
fn rotary_styles_whole_and_partial() {
    for style in [RotaryStyle::Half, RotaryStyle::Interleaved] {
        for pairs in [0, 3, 8, 16] {
            check(&sequences(&[50, 3]), pairs, style, &shape(4, 2, 32));
        }
    }
}

#[test]
fn windows_and_softcaps() {
    for window in [1, 2, 15, 16, 17, 100, 300, 5000] {
        let shape = AttentionShape { window: Some(window), ..shape(3, 1, 16) };
        check(&sequences(&[400, 17]), 8, RotaryStyle::Half, &shape);
        let tree = [segment(0..290, vec![]), segment(290..310, vec![0..290]), segment(310..330, vec![0..290, 290..305])];
        check(&tree, 8, RotaryStyle::Half, &shape);
    }
    check(&sequences(&[70]), 8, RotaryStyle::Half, &AttentionShape { softcap: Some(1.5), ..shape(3, 1, 16) });
}

#[test]
fn contexts_of_any_cut() {
    let cuts = [
        segment(0..20, vec![]),
        segment(20..20, vec![]),
        segment(20..50, vec![0..20]),
        segment(50..51, vec![0..20, 20..33]),
        segment(51..90, vec![3..50]),
        segment(90..93, vec![1..2, 1..2, 60..61]),
    ];
    // This is a real sequence only if contexts keep their rows' positions, but the formula does not require that.
    check(&cuts, 8, RotaryStyle::Half, &shape(3, 1, 16));
}

#[test]
fn a_long_sequence() {
    check(&sequences(&[4096]), 8, RotaryStyle::Half, &shape(1, 1, 16));
}

/// Rows of `qkv` in another order, for example with a prefix repeated for every sequence.
fn gather(qkv: &[f32], columns: usize, rows: impl IntoIterator<Item = usize>) -> Vec<f32> {
    rows.into_iter().flat_map(|t| qkv[t * columns..(t + 1) * columns].to_vec()).collect()
}

#[test]
fn a_tree_equals_its_unshared_sequences_to_the_bit() {
    let plain = shape(9, 3, 64);
    let rotary = Rotary::new(&frequencies(32), 1000, RotaryStyle::Half, 1.0);
    // Branches in the middle and at the ends of granules, tiles and strips, and branches of one token.
    let tree = [
        segment(0..100, vec![]),
        segment(100..133, vec![0..100]),
        segment(133..150, vec![0..100, 100..133]),
        segment(150..510, vec![0..100, 100..133]),
        segment(510..515, vec![0..100]),
        segment(515..540, vec![0..100, 100..133, 150..273]),
        segment(540..541, vec![0..100, 100..133, 150..510]),
        segment(541..549, vec![0..96]),
    ];
    let n_tokens = tree[7].tokens.end;
    let qkv = noise(n_tokens * plain.columns(), 2.0, 1);
    let with_sinks = sinks(&plain);
    let windowed = AttentionShape { window: Some(70), ..plain };
    for (shape, sinks) in [(plain, None), (windowed, None), (plain, Some(&with_sinks[..])), (windowed, Some(&with_sinks[..]))] {
        for (level, factors) in arithmetics() {
            let run = |qkv: &[f32], segments: &[Segment]| {
                let positions = positions(segments, qkv.len() / shape.columns()).unwrap();
                let (positions, rotary, shape) = (&positions, &rotary, &shape);
                fused::attention(&Problem { qkv, segments, positions, rotary, shape, sinks, level, factors }).0
            };
            let shared = run(&qkv, &tree);
            for segment in &tree {
                let rows: Vec<usize> = segment.context.iter().chain([&segment.tokens]).flat_map(|range| range.clone()).collect();
                let alone = run(&gather(&qkv, shape.columns(), rows.iter().copied()), &sequences(&[rows.len()]));
                let own = segment.tokens.start * 576..segment.tokens.end * 576;
                assert!(shared[own.clone()] == alone[alone.len() - own.len()..], "{level} {factors:?}: {segment:?}, {shape:?}");
            }
        }
    }
}

#[test]
fn neither_neighbours_nor_threads_change_a_bit() {
    let shape = shape(9, 3, 64);
    let rotary = Rotary::new(&frequencies(32), 1000, RotaryStyle::Half, 1.0);
    let lengths = [199, 7, 300, 48];
    let qkv = noise(554 * shape.columns(), 2.0, 1);
    for (level, factors) in arithmetics() {
        let run = |qkv: &[f32], segments: &[Segment]| {
            let positions = positions(segments, qkv.len() / shape.columns()).unwrap();
            let (positions, rotary, shape) = (&positions, &rotary, &shape);
            fused::attention(&Problem { qkv, segments, positions, rotary, shape, sinks: None, level, factors }).0
        };
        let segments = sequences(&lengths);
        let together = run(&qkv, &segments);
        let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert!(single.install(|| run(&qkv, &segments)) == together, "{level} {factors:?}: one thread");
        for segment in &segments {
            let rows = segment.tokens.clone();
            let alone = run(&gather(&qkv, shape.columns(), rows.clone()), &sequences(&[rows.len()]));
            assert!(alone == together[rows.start * 576..rows.end * 576], "{level} {factors:?}: {rows:?} alone");
            // Later tokens of the same sequence have no effect, either.
            let half = rows.start..rows.start + rows.len() / 2;
            let alone = run(&gather(&qkv, shape.columns(), half.clone()), &sequences(&[half.len()]));
            assert!(alone == together[half.start * 576..half.end * 576], "{level} {factors:?}: {half:?} alone");
        }
    }
}

/// The gradient of a weighted sum of the outputs by candle's autograd: of `qkv`, and of the sinks for the reference.
fn gradient(
    qkv: &Var,
    segments: &[Segment],
    rotary: &Rotary,
    shape: &AttentionShape,
    sinks: Option<&Var>,
    kernels: Kernels,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let heads = Heads { shape, rotary, sinks: sinks.map(Var::as_tensor), dtype: Dtype::F32 };
    let y = attention(qkv, &segments.into(), &heads, kernels).unwrap().read;
    let upstream = Tensor::from_vec(noise(y.elem_count(), 1.0, 9), y.shape(), &Device::Cpu).unwrap();
    let gradients = (y * upstream).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |var: &Var| Some(gradients.get(var)?.flatten_all().unwrap().to_vec1().unwrap());
    (of(qkv).unwrap(), sinks.and_then(of))
}

/// Compares every level with candle's autograd of the reference.
fn check_gradient(segments: &[Segment], pairs: usize, style: RotaryStyle, shape: &AttentionShape) {
    let tokens = segments.last().unwrap().tokens.end;
    let values = noise(tokens * shape.columns(), 2.0, tokens as u64);
    let qkv = Var::from_slice(&values, (tokens, shape.columns()), &Device::Cpu).unwrap();
    let rotary = Rotary::new(&frequencies(pairs), tokens, style, 1.0);
    let positions = positions(segments, tokens).unwrap();
    let exact = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
    for sinks in [None, Some(sinks(shape))] {
        let variable = sinks.as_ref().map(|sinks| Var::from_slice(sinks, sinks.len(), &Device::Cpu).unwrap());
        let (expected, of_sinks) = gradient(&qkv, segments, &rotary, shape, variable.as_ref(), Kernels::Reference);
        let (expected, of_sinks) = (exact(expected), of_sinks.map(exact));
        let what = format!("gradient of {tokens} tokens {shape:?} {sinks:?}");
        close(&gradient(&qkv, segments, &rotary, shape, variable.as_ref(), Kernels::Fused).0, &expected, 1e-4, &what);
        for (level, factors) in arithmetics() {
            let sinks = sinks.as_deref();
            let problem =
                Problem { qkv: &values, segments, positions: &positions, rotary: &rotary, shape, sinks, level, factors };
            let (y, softmaxes) = fused::attention(&problem);
            let dy = noise(y.len(), 1.0, 9);
            let got = backward::gradient(&problem, &y, &softmaxes, &dy);
            let what = format!("{level} {factors:?} {what}");
            match factors {
                Factors::F32 => close(&got, &expected, 1e-4, &what),
                _ => near(&got, &expected, &what),
            }
            if let (Some(sinks), Some(expected)) = (sinks, &of_sinks) {
                // A sum over tokens of terms of both signs, each of size one and off by a few thousandths of either sign.
                let n = tokens as f64;
                let tolerance = if factors == Factors::F32 { 1e-4 } else { (1e-3 * n).min(4e-3 * n.sqrt()) };
                close(&sinks::gradient(sinks, &softmaxes, &y, &dy), expected, tolerance, &format!("sinks, {what}"));
            }
        }
    }
}

#[test]
fn gradients_match_the_reference() {
    for n in [1, 2, 15, 16, 17, 63, 257, 300] {
        check_gradient(&sequences(&[n]), 8, RotaryStyle::Half, &shape(3, 1, 16));
    }
    for (heads, kv_heads, head_dim) in [(1, 1, 1), (4, 4, 17), (9, 3, 64), (14, 2, 33), (4, 1, 128)] {
        check_gradient(&sequences(&[37, 1, 20]), head_dim / 4, RotaryStyle::Interleaved, &shape(heads, kv_heads, head_dim));
    }
    let tree =
        [segment(0..29, vec![]), segment(29..31, vec![]), segment(31..50, vec![0..29]), segment(50..70, vec![0..29, 31..45])];
    check_gradient(&tree, 8, RotaryStyle::Half, &shape(3, 1, 16));
    for window in [1, 5, 20] {
        check_gradient(&tree, 8, RotaryStyle::Half, &AttentionShape { window: Some(window), ..shape(3, 1, 16) });
    }
    check_gradient(&tree, 8, RotaryStyle::Half, &AttentionShape { softcap: Some(1.5), ..shape(3, 1, 16) });
}

/// Keys and values far from zero, as in some models, of which only the differences matter: in bf16 the rounding of the mean itself remains, but
/// no error may be multiplied by the mean through weights or gradients that do not add up (this was 0.2 of `dq` here).
#[test]
fn gradients_with_means_far_from_zero() {
    let (shape, tokens) = (shape(2, 1, 32), 100);
    let width = shape.columns();
    let noise = noise(tokens * width, 1.0, 4);
    let of_query = shape.heads * shape.head_dim;
    let values: Vec<f32> = noise.iter().enumerate().map(|(i, x)| if i % width < of_query { *x } else { x + 6.0 }).collect();
    let (segments, rotary) = (&sequences(&[tokens]), &Rotary::new(&[], 0, RotaryStyle::Half, 1.0));
    let positions = &positions(segments, tokens).unwrap();
    let of = |level, factors| {
        let problem = Problem { qkv: &values, segments, positions, rotary, shape: &shape, sinks: None, level, factors };
        let (y, softmaxes) = fused::attention(&problem);
        let dy = crate::kernels::testing::noise(y.len(), 1.0, 9);
        backward::gradient(&problem, &y, &softmaxes, &dy)
    };
    let expected = of(Level::Portable, Factors::F32);
    for (level, factors) in arithmetics() {
        let found = of(level, factors);
        // Queries, keys and values separately.
        for columns in [0..of_query, of_query..of_query + 32, of_query + 32..width] {
            let part = |values: &[f32]| -> Vec<f64> {
                values.chunks(width).flat_map(|row| &row[columns.clone()]).map(|x| f64::from(*x)).collect()
            };
            let (error, size) = lengths(part(&found).into_iter(), part(&expected).into_iter());
            let bound = if factors == Factors::F32 { 1e-4 } else { 6e-2 };
            assert!(error < bound * size, "{level} {factors:?} {columns:?}: {error} beside {size}");
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_check_of_the_tiles_passes() {
    if Level::available().contains(&Level::Amx) {
        check_tiles().unwrap();
    }
}

/// The shares of a long sequence against one sum over it: equal except for rounding, and with the same bits for any number of threads.
#[test]
fn the_gradient_of_a_long_sequence_is_a_sum_of_shares() {
    let (shape, n) = (shape(2, 1, 16), 2100);
    check_gradient(&sequences(&[n]), 8, RotaryStyle::Half, &shape);
    let tree = [segment(0..1400, vec![]), segment(1400..2000, vec![0..1400]), segment(2000..2100, vec![0..1390])];
    check_gradient(&tree, 8, RotaryStyle::Half, &shape);
    let qkv = noise(n * shape.columns(), 2.0, 3);
    let rotary = Rotary::new(&frequencies(8), n, RotaryStyle::Half, 1.0);
    for segments in [&sequences(&[n])[..], &tree] {
        let positions = positions(segments, n).unwrap();
        let level = Level::current();
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let (qkv, positions, rotary, shape, factors) = (&qkv, &positions, &rotary, &shape, Factors::of(level, dtype));
            let problem = Problem { qkv, segments, positions, rotary, shape, sinks: None, level, factors };
            let (y, softmaxes) = fused::attention(&problem);
            let gradient = || backward::gradient(&problem, &y, &softmaxes, &noise(y.len(), 1.0, 9));
            let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(gradient);
            assert!(on(1) == on(3), "{dtype}");
        }
    }
}

#[test]
fn nan_reaches_those_who_see_it_and_nobody_else() {
    let shape = shape(3, 1, 16);
    let segments = sequences(&[40, 20]);
    let rotary = Rotary::new(&frequencies(8), 60, RotaryStyle::Half, 1.0);
    let mut qkv = noise(60 * shape.columns(), 2.0, 1);
    qkv[20 * shape.columns() + 3 * 16] = f32::NAN; // the key of token 20
    for (level, factors) in arithmetics() {
        let positions = positions(&segments, 60).unwrap();
        let (qkv, segments, positions, rotary, shape) = (&qkv, &segments, &positions, &rotary, &shape);
        let y = fused::attention(&Problem { qkv, segments, positions, rotary, shape, sinks: None, level, factors }).0;
        for (token, row) in y.chunks(48).enumerate() {
            assert!(row.iter().all(|x| x.is_nan() == (20..40).contains(&token)), "{level} {factors:?}: token {token}");
        }
    }
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let rotary = Rotary::new(&[1.0], 2, RotaryStyle::Half, 1.0);
    let qkv = Tensor::zeros((3, 12), candle_core::DType::F32, &Device::Cpu).unwrap();
    let fails = |lengths: &[usize], shape| {
        let heads = Heads { shape: &shape, rotary: &rotary, sinks: None, dtype: Dtype::F32 };
        attention(&qkv, &sequences(lengths).into(), &heads, Kernels::Fused).unwrap_err().to_string()
    };
    assert!(fails(&[3], shape(4, 1, 2)).contains("position 2"));
    assert!(fails(&[2], shape(4, 1, 2)).contains("cover 2 tokens"));
    assert!(fails(&[2, 1], shape(3, 1, 2)).contains("expected 10"));
    assert!(fails(&[2, 1], shape(3, 2, 2)).contains("evenly"));
    assert!(fails(&[2, 1], AttentionShape { window: Some(0), ..shape(4, 1, 2) }).contains("window"));
    assert!(fails(&[2, 1], shape(10, 1, 1)).contains("turns 2"));
    let with = |sinks: &[f32], kernels| {
        let sinks = Tensor::new(sinks, &Device::Cpu).unwrap();
        let heads = Heads { shape: &shape(4, 1, 2), rotary: &rotary, sinks: Some(&sinks), dtype: Dtype::F32 };
        attention(&qkv, &sequences(&[2, 1]).into(), &heads, kernels).unwrap_err().to_string()
    };
    assert!(with(&[1.0; 3], Kernels::Fused).contains("each of 4 heads, found 3"));
    assert!(with(&[1.0, f32::NAN, 1.0, 1.0], Kernels::Reference).contains("head 1 is NaN"));
}

#[test]
fn positions_continue_the_context() {
    let tree = [segment(0..3, vec![]), segment(3..5, vec![0..3]), segment(5..6, vec![0..3, 3..4])];
    assert_eq!(positions(&tree, 6).unwrap(), [0, 1, 2, 3, 4, 4]);
    assert!(positions(&tree, 7).is_err());
    assert!(positions(&tree[1..], 6).is_err());
    assert!(positions(&[segment(0..3, vec![0..1])], 3).unwrap_err().message().contains("before it"));
}
