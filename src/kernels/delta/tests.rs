//! Compares the fused rule with the formulas in f64 and its backward pass with candle's autograd of the reference.
#![allow(clippy::single_range_in_vec_init, reason = "a context is a list of ranges")]

use candle_core::{Device, Tensor, Var};

use super::rule::{Forward, Inputs};
use super::*;
use crate::kernels::testing::{close, device, implementations, noise};

const SMALL: DeltaShape = DeltaShape { key_heads: 2, value_heads: 4, key_dim: 5, value_dim: 3, kernel: 4, grouped: true };

fn segment(tokens: std::ops::Range<usize>, context: Vec<std::ops::Range<usize>>) -> Segment {
    Segment { tokens, context }
}

fn variables(tokens: usize, shape: DeltaShape) -> (Var, [Var; 3]) {
    let var = |n: usize, dims: &[usize], seed| Var::from_slice(&noise(n, 1.0, seed), dims, &Device::Cpu).unwrap();
    let x = var(tokens * shape.columns(), &[tokens, shape.columns()], 1);
    let (channels, kernel, heads) = (shape.channels(), shape.kernel, shape.value_heads);
    (x, [var(channels * kernel, &[channels, kernel], 2), var(heads, &[heads], 3), var(heads, &[heads], 4)])
}

fn weights([convolution, a_log, dt_bias]: &[Var; 3]) -> DeltaWeights {
    let of = |var: &Var| var.as_tensor().clone();
    DeltaWeights { convolution: of(convolution), a_log: of(a_log), dt_bias: of(dt_bias) }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

fn check(segments: &[Segment], shape: DeltaShape) {
    let tokens = segments.last().unwrap().tokens.end;
    let (x, vars) = variables(tokens, shape);
    let weights = weights(&vars);
    let what = format!("{tokens} tokens, {shape:?}");
    let expected = delta(&x, &weights, segments, shape, Kernels::Reference).unwrap();
    for kernels in implementations() {
        let found = delta(&x, &weights, segments, shape, kernels).unwrap();
        close(&flat(&found), &exact(&flat(&expected)), 1e-5, &format!("{kernels:?}, {what}"));
    }

    let dy = Tensor::from_vec(noise(expected.elem_count(), 1.0, 9), expected.shape(), &Device::Cpu).unwrap();
    let gradients = (expected * &dy).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |var: &Var| exact(&flat(gradients.get(var).unwrap()));
    let found = delta_backward(&x, &weights, segments, shape, &dy).unwrap();
    close(&flat(&found.x), &of(&x), 1e-4, &format!("columns, {what}"));
    close(&found.convolution, &of(&vars[0]), 1e-4, &format!("convolution, {what}"));
    close(&found.a_log, &of(&vars[1]), 1e-4, &format!("A_log, {what}"));
    close(&found.dt_bias, &of(&vars[2]), 1e-4, &format!("dt_bias, {what}"));
}

#[test]
fn the_fused_rule_is_the_reference_forward_and_backward() {
    for shape in [
        SMALL,
        DeltaShape { grouped: false, ..SMALL },
        DeltaShape { key_heads: 1, value_heads: 1, key_dim: 16, value_dim: 17, kernel: 1, grouped: true },
        DeltaShape { key_heads: 3, value_heads: 3, key_dim: 33, value_dim: 8, kernel: 2, grouped: false },
    ] {
        // Lengths around the chunks of the backward pass, several sequences, and shared prefixes.
        check(&[segment(0..1, vec![])], shape);
        check(&[segment(0..65, vec![])], shape);
        check(&[segment(0..3, vec![]), segment(3..35, vec![]), segment(35..67, vec![])], shape);
        check(
            &[segment(0..9, vec![]), segment(9..11, vec![0..9]), segment(11..12, vec![0..9, 9..10]), segment(12..14, vec![0..2])],
            shape,
        );
    }
}

/// Heads as wide as those of models and wider: on a GPU several blocks share a head, and beyond 128 elements more lanes share a key.
#[test]
fn wide_heads() {
    for (key_dim, value_dim) in [(128, 128), (64, 100), (130, 70), (256, 33)] {
        let shape = DeltaShape { key_heads: 2, value_heads: 4, key_dim, value_dim, kernel: 4, grouped: true };
        let segments = [segment(0..21, vec![]), segment(21..30, vec![0..21]), segment(30..47, vec![])];
        let (x, vars) = variables(47, shape);
        let weights = weights(&vars);
        let expected = exact(&flat(&delta(&x, &weights, &segments, shape, Kernels::Reference).unwrap()));
        for kernels in implementations() {
            let found = delta(&x, &weights, &segments, shape, kernels).unwrap();
            close(&flat(&found), &expected, 1e-5, &format!("{kernels:?}, {shape:?}"));
        }
    }
}

#[test]
fn every_level_is_the_recurrence_in_f64() {
    let (tokens, width, value_dim) = (70, 16, 11);
    let [queries, keys] = [1, 2].map(|seed| noise(tokens * width, 0.4, seed));
    let values = noise(tokens * value_dim, 1.0, 3);
    let half = |seed| noise(tokens, 0.5, seed).into_iter().map(|x| x + 0.5).collect::<Vec<f32>>();
    let (alpha, beta) = (half(4), half(5));
    let mut expected = Vec::new();
    let mut states = vec![vec![0.0; width]; value_dim];
    for t in 0..tokens {
        let of = |row: &[f32]| exact(&row[t * width..][..width]);
        let (query, key) = (of(&queries), of(&keys));
        for (column, state) in states.iter_mut().enumerate() {
            state.iter_mut().for_each(|s| *s *= f64::from(alpha[t]));
            let read: f64 = state.iter().zip(&key).map(|(s, k)| s * k).sum();
            let learnt = f64::from(beta[t]) * (f64::from(values[t * value_dim + column]) - read);
            state.iter_mut().zip(&key).for_each(|(s, k)| *s += k * learnt);
            expected.push(state.iter().zip(&query).map(|(s, q)| s * q).sum::<f64>());
        }
    }
    for level in Level::available() {
        let (mut states, mut outputs) = (vec![0.0; value_dim * width], vec![0.0; values.len()]);
        let inputs = Inputs { queries: &queries, keys: &keys, values: &values, alpha: &alpha, beta: &beta, width, value_dim };
        level.run(Forward { inputs, states: &mut states, outputs: &mut outputs });
        close(&outputs, &expected, 1e-5, &level.to_string());
    }
}

/// One head with one number and almost no decay: what is learnt under a key is read under it again.
#[test]
fn by_hand() {
    let shape = DeltaShape { key_heads: 1, value_heads: 1, key_dim: 1, value_dim: 1, kernel: 1, grouped: false };
    // q, k, v, z, b, a: the first token has v = 2 and learns half of it; the second learns half of the difference between its 4 and
    // that.
    let x = Tensor::new(&[[30f32, 30.0, 2.0, 7.0, 0.0, -50.0], [30.0, 30.0, 4.0, 8.0, 0.0, -50.0]], &Device::Cpu).unwrap();
    let one = |x: f32| Tensor::new(&[x], &Device::Cpu).unwrap();
    let convolution = Tensor::new(&[[1f32], [1.0], [1.0]], &Device::Cpu).unwrap();
    let weights = DeltaWeights { convolution, a_log: one(0.0), dt_bias: one(0.0) };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let (first, second) = (0.5 * silu(2.0), 0.25 * silu(2.0) + 0.5 * silu(4.0));
    for kernels in implementations() {
        let y = delta(&x, &weights, &[segment(0..2, vec![])], shape, kernels).unwrap();
        close(&flat(&y), &[7.0, first, 8.0, second], 1e-5, "by hand");
    }
}

#[test]
fn a_shared_prefix_and_neighbours_change_no_bit() {
    let (x, vars) = variables(40, SMALL);
    let (x, weights) = (x.as_tensor(), weights(&vars));
    // A tree with a fork at its second segment, which is one token long, a neighbour, and a context that ends within a segment.
    let segments = [
        segment(0..14, vec![]),
        segment(14..15, vec![0..14]),
        segment(15..21, vec![0..14, 14..15]),
        segment(21..24, vec![]),
        segment(24..29, vec![0..14, 14..15]),
        segment(29..32, vec![0..14, 14..15, 24..29]),
        segment(32..33, vec![0..14]),
        segment(33..40, vec![0..9]),
    ];
    for (kernels, segment) in
        implementations().iter().skip(1).flat_map(|kernels| segments.iter().map(move |segment| (*kernels, segment)))
    {
        let run = |x: &Tensor, segments: &[Segment]| delta(x, &weights, segments, SMALL, kernels).unwrap();
        let before: Vec<usize> = segment.context.iter().flat_map(|range| range.clone()).collect();
        let rows: Vec<u32> = before.iter().copied().chain(segment.tokens.clone()).map(|row| row as u32).collect();
        let n = rows.len();
        let alone = x.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
        let alone = run(&alone, &[Segment { tokens: 0..n, context: Vec::new() }]);
        let alone = alone.narrow(0, before.len(), segment.tokens.len()).unwrap();
        let found = run(x, &segments).narrow(0, segment.tokens.start, segment.tokens.len()).unwrap();
        assert_eq!(flat(&found), flat(&alone), "{kernels:?} {segment:?}");
    }
}

/// Two sequences that are read side by side in pieces of all sizes, and one that replaces the second.
#[test]
fn pieces_give_the_bits_of_the_whole() {
    let (x, vars) = variables(90, SMALL);
    let (x, weights) = (x.as_tensor(), weights(&vars));
    let mut cache = DeltaCache::new(SMALL, 2);
    let lengths = [50, 20, 20];
    let mut done = [0; 3];
    let mut found: [Vec<f32>; 3] = Default::default();
    for pieces in [&[(0, 7)][..], &[(0, 1), (1, 2)], &[(1, 1), (0, 2)], &[(0, 30), (1, 17)], &[(2, 1)], &[(0, 10), (2, 19)]] {
        let (mut rows, mut stretches) = (Vec::new(), Vec::new());
        for &(sequence, n) in pieces {
            let (first, tokens): (usize, _) = (lengths[..sequence].iter().sum(), rows.len()..rows.len() + n);
            rows.extend((first + done[sequence]..first + done[sequence] + n).map(|row| row as u32));
            stretches.push(Stretch { tokens, position: done[sequence], pages: Vec::new().into(), sequence: sequence.min(1) });
            done[sequence] += n;
        }
        let rows = x.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
        let y = delta_onto(&rows, &weights, &stretches, &mut cache).unwrap();
        for (&(sequence, n), stretch) in pieces.iter().zip(&stretches) {
            found[sequence].extend(flat(&y.narrow(0, stretch.tokens.start, n).unwrap()));
        }
    }
    assert_eq!(done, lengths);
    let whole =
        delta(x, &weights, &[segment(0..50, vec![]), segment(50..70, vec![]), segment(70..90, vec![])], SMALL, Kernels::Fused);
    assert_eq!(found.concat(), flat(&whole.unwrap()));
}

#[test]
fn a_sequence_goes_on_from_where_it_stands() {
    let (x, vars) = variables(6, SMALL);
    let (x, weights) = (x.as_tensor(), weights(&vars));
    let mut cache = DeltaCache::new(SMALL, 2);
    let mut run = |stretches: &[(usize, usize)]| {
        let stretch = |(i, &(sequence, position)): (usize, &(usize, usize))| {
            let tokens = 2 * i..2 * i + 2;
            Stretch { tokens, position, pages: Vec::new().into(), sequence }
        };
        let stretches: Vec<Stretch> = stretches.iter().enumerate().map(stretch).collect();
        let x = x.narrow(0, 0, 2 * stretches.len()).unwrap();
        delta_onto(&x, &weights, &stretches, &mut cache).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(run(&[(0, 0), (1, 0)]), Ok(()));
    for (stretches, message) in [
        (vec![(0, 3)], "stand behind token 2"),
        (vec![(1, 2), (0, 1)], "stand behind token 2"),
        (vec![(2, 0)], "no room for sequence 2"),
        (vec![(1, 2), (1, 2)], "two stretches"),
    ] {
        assert!(run(&stretches).unwrap_err().contains(message), "{stretches:?}");
    }
    assert_eq!(run(&[(1, 2), (0, 0)]), Ok(()));
    assert_eq!(run(&[(0, 2), (1, 4)]), Ok(()));
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let (x, vars) = variables(3, SMALL);
    let weights = weights(&vars);
    let fails = |shape, kernels| delta(&x, &weights, &[segment(0..3, vec![])], shape, kernels).unwrap_err().to_string();
    assert!(fails(DeltaShape { key_dim: 6, ..SMALL }, Kernels::Fused).contains("columns"));
    assert!(fails(DeltaShape { value_heads: 3, ..SMALL }, Kernels::Fused).contains("evenly"));
    assert!(fails(DeltaShape { kernel: 5, ..SMALL }, Kernels::Fused).contains("the convolution is [32, 4]"));
    if device().is_some() {
        let wide = DeltaShape { key_heads: 1, value_heads: 1, key_dim: 257, ..SMALL };
        let (x, vars) = variables(3, wide);
        let error = delta(&x, &self::weights(&vars), &[segment(0..3, vec![])], wide, Kernels::Cuda).unwrap_err().to_string();
        assert!(error.contains("up to 256 elements, not 257"), "{error}");
    }
}
