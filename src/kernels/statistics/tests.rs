//! Numbers that can be checked by hand, then every level compared with the definitions in f64.

use candle_core::Device;

use super::reference::divergence_of_logits;
use super::*;
use crate::kernels::testing::{DTYPES, device, implementations, noise, product};
use crate::kernels::{Dtype, Kernels, NEXT_CHOICES};

/// Reproducible numbers in [-1, 1).
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    noise(n, 1.0, seed)
}

fn tensor(values: &[f32], rows: usize, columns: usize) -> Tensor {
    Tensor::from_slice(values, (rows, columns), &Device::Cpu).unwrap()
}

/// The statistics of several targets in one row of logits, by the definitions and by every level. The logits are the column of a head of width
/// 1, and the hidden state is 1, so they reach the statistics unchanged.
fn all_ways(logits: &[f32], targets: &[u32], top_k: usize) -> Vec<(String, Vec<TokenStatistics>)> {
    let head = Matrix::new([Ok(tensor(logits, logits.len(), 1))], Dtype::F32, Kernels::Fused).unwrap();
    let (panels, ones) = (head.panels().unwrap(), vec![1.0; targets.len()]);
    let options = HeadOptions { top_k, softcap: None };
    let mut ways: Vec<_> = Level::available()
        .into_iter()
        .map(|level| (level.to_string(), fused::head_statistics(level, &ones, &panels, targets, &options, Curves::default()).0))
        .collect();
    if device().is_some() {
        let head = Matrix::new([Ok(tensor(logits, logits.len(), 1))], Dtype::F32, Kernels::Cuda).unwrap();
        ways.push(("cuda".into(), head_statistics(&tensor(&ones, ones.len(), 1), &head, targets, &options).unwrap()));
    }
    let truth = targets.iter().map(|&target| statistics_of_logits(logits, target, top_k)).collect();
    ways.push(("f64".into(), truth));
    ways
}

fn fields(s: &TokenStatistics) -> [(&'static str, f32); 7] {
    [
        ("logprob", s.logprob),
        ("entropy", s.entropy),
        ("entropy_topk", s.entropy_topk),
        ("tail", s.tail),
        ("varentropy", s.varentropy),
        ("grad", s.grad),
        ("top_logprob", s.top_logprob),
    ]
}

/// Equal up to `relative`, or `absolute` near zero; integers exactly.
fn assert_close(name: &str, got: &TokenStatistics, expected: &TokenStatistics, relative: f32, absolute: f32) {
    assert_eq!((got.rank, got.top_id), (expected.rank, expected.top_id), "{name}: rank and first choice");
    for ((field, got), (_, expected)) in fields(got).into_iter().zip(fields(expected)) {
        let close = (got - expected).abs() <= relative * expected.abs() + absolute;
        assert!(close || got == expected || (got.is_nan() && expected.is_nan()), "{name}: {field} is {got}, not {expected}");
    }
    let is_close = |a: f32, b: f32| a == b || (a - b).abs() <= relative * b.abs() + absolute;
    for (i, (own, true_one)) in got.next.iter().zip(&expected.next).enumerate() {
        assert!(is_close(own.logprob, true_one.logprob), "{name}: choice {} is {own:?}, not {true_one:?}", i + 2);
        // Two choices whose logits differ by a rounding error may be swapped, and the last one with the next after it.
        let is_tied = expected.next.iter().any(|other| other.id == own.id && is_close(other.logprob, true_one.logprob));
        assert!(
            own.id == true_one.id || is_tied || i + 1 == NEXT_CHOICES,
            "{name}: choice {} is {own:?}, not {true_one:?}",
            i + 2
        );
    }
}

/// Checks that every way gives `expected` for `target`, up to 1e-6.
fn check(logits: &[f32], target: u32, expected: TokenStatistics) {
    let expected = TokenStatistics { next: statistics_of_logits(logits, target, 20).next, ..expected };
    for (name, got) in all_ways(logits, &[target], 20) {
        assert_close(&format!("{name}, {} words", logits.len()), &got[0], &expected, 1e-6, 1e-7);
    }
}

#[test]
fn uniform_logits() {
    for v in [2u32, 3, 20, 48, 49, 1000, 30_000] {
        for logit in [0.0, -7.5, 1e4] {
            let p = 1.0 / v as f32;
            check(
                &vec![logit; v as usize],
                v / 2,
                TokenStatistics {
                    logprob: p.ln(),
                    entropy: (v as f32).ln(),
                    entropy_topk: 1.0,
                    rank: 1,
                    tail: 1.0,
                    varentropy: 0.0,
                    grad: (1.0 - p).sqrt(),
                    top_id: 0,
                    top_logprob: p.ln(),
                    ..TokenStatistics::default()
                },
            );
        }
    }
}

#[test]
fn one_word_alone_has_all_the_mass() {
    let mut one_hot = vec![f32::NEG_INFINITY; 100];
    one_hot[60] = 3.0;
    let certain = TokenStatistics { rank: 1, tail: 1.0, top_id: 60, ..TokenStatistics::default() };
    check(&one_hot, 60, certain);
    // A word without mass: ln p = -inf, and no word that is at most as probable has any mass.
    check(&one_hot, 7, TokenStatistics { logprob: f32::NEG_INFINITY, rank: 2, tail: 0.0, grad: 2f32.sqrt(), ..certain });
    check(&[5.0], 0, TokenStatistics { top_id: 0, ..certain });
}

#[test]
fn a_tie_for_the_first_place() {
    let half = TokenStatistics {
        logprob: 0.5f32.ln(),
        entropy: 2f32.ln(),
        entropy_topk: 2f32.ln() / 20f32.ln(),
        rank: 1,
        tail: 1.0,
        varentropy: 0.0,
        // (1/2, 1/2) minus (1, 0)
        grad: 0.5f32.sqrt(),
        top_id: 3,
        top_logprob: 0.5f32.ln(),
        ..TokenStatistics::default()
    };
    let mut logits = vec![f32::NEG_INFINITY; 70];
    (logits[3], logits[50]) = (1.0, 1.0);
    check(&logits, 3, half);
    check(&logits, 50, half);
}

#[test]
fn three_quarters_and_one_quarter() {
    // p = 3/4, 1/4; H = 2 ln 2 - 3/4 ln 3; the variance of ln p is p q (ln 3)^2 = 3/16 (ln 3)^2.
    let logits = [3f32.ln(), 0.0];
    let first = TokenStatistics {
        logprob: 0.75f32.ln(),
        entropy: 0.562_335_14,
        entropy_topk: 0.811_278_1,
        rank: 1,
        tail: 1.0,
        varentropy: 0.226_302_9,
        grad: 0.125f32.sqrt(),
        top_id: 0,
        top_logprob: 0.75f32.ln(),
        ..TokenStatistics::default()
    };
    check(&logits, 0, first);
    check(&logits, 1, TokenStatistics { logprob: 0.25f32.ln(), rank: 2, tail: 0.25, grad: 1.125f32.sqrt(), ..first });
}

#[test]
fn the_next_choices_by_hand() {
    // p = 1/2, 1/4, 1/8 twice; the rest has no mass.
    let mut logits = vec![f32::NEG_INFINITY; 60];
    for (id, p) in [(50, 0.5f32), (7, 0.25), (41, 0.125), (3, 0.125)] {
        logits[id] = p.ln();
    }
    for target in [3, 7, 41, 50, 59] {
        for (name, got) in all_ways(&logits, &[target], 20) {
            let next = got[0].next;
            assert_eq!(next.map(|choice| choice.id), [7, 3, 41, 0], "{name}, target {target}");
            for (choice, p) in next.iter().zip([0.25f32, 0.125, 0.125, 0.0]) {
                assert!((choice.logprob.exp() - p).abs() < 1e-6, "{name}, target {target}: {choice:?}");
            }
        }
    }
    // With only two of the largest logits kept, one choice after the first is known.
    for (name, got) in all_ways(&logits, &[3], 2) {
        assert_eq!(got[0].next.map(|choice| choice.logprob.is_finite()), [true, false, false, false], "{name}");
    }
}

#[test]
fn a_target_close_to_certainty_keeps_its_digits() {
    // 1 - p = 1e-6 in one other word: ln p = -1.0000005e-6, grad = sqrt(2) 1e-6.
    let logits = [0.0, 1e-6f32.ln()];
    for (name, got) in all_ways(&logits, &[0], 20) {
        let q = 1e-6 / (1.0 + 1e-6);
        let relative = |got: f32, expected: f64| (f64::from(got) / expected - 1.0).abs();
        assert!(relative(got[0].logprob, -1e-6f64.ln_1p()) < 3e-6, "{name}: {}", got[0].logprob);
        assert!(relative(got[0].grad, 2f64.sqrt() * q) < 3e-6, "{name}: {}", got[0].grad);
        assert!(relative(got[0].entropy, 1e-6f64.ln_1p() - q * 1e-6f64.ln()) < 3e-6, "{name}: {}", got[0].entropy);
    }
}

/// Between exp(-709) and exp(-745) f64 has few digits, and below it underflows.
#[test]
fn a_target_of_next_to_no_mass_keeps_its_digits() {
    for d in [-600.0f32, -697.0, -705.0, -709.5, -712.0, -720.0, -733.0, -744.0, -745.5, -800.0, -10_000.0] {
        // 1,000 words, all of the same mass except the target.
        let mut logits = vec![3.0; 1000];
        logits[17] = 3.0 + d;
        let expected = f64::from(d) - 999f64.ln();
        for (name, got) in all_ways(&logits, &[17], 20) {
            let error = (f64::from(got[0].logprob) / expected - 1.0).abs();
            assert!(error < 1e-6, "{name}: {} for {expected}", got[0].logprob);
        }
    }
}

#[test]
fn nan_and_infinity_spoil_the_whole_row_and_no_other() {
    for spoiler in [f32::NAN, f32::INFINITY] {
        for place in [0, 5, 47, 99] {
            let mut logits = numbers(100, 9);
            logits[place] = spoiler;
            for (name, got) in all_ways(&logits, &[5, 99], 20) {
                for statistics in got {
                    assert!(fields(&statistics).iter().all(|(_, x)| x.is_nan()), "{name}: {statistics:?}");
                    assert_eq!((statistics.rank, statistics.top_id), (0, 0), "{name}");
                }
            }
        }
    }
    for (name, got) in all_ways(&[f32::NEG_INFINITY; 60], &[3], 20) {
        assert!(got[0].logprob.is_nan() && got[0].rank == 0, "{name}: nothing but -inf is no distribution");
    }
    // The second of two rows is NaN.
    let head = Matrix::new([Ok(tensor(&numbers(90, 1), 90, 1))], Dtype::F32, Kernels::Fused).unwrap();
    let got = head_statistics(&tensor(&[1.0, f32::NAN], 2, 1), &head, &[4, 4], &HeadOptions::default()).unwrap();
    assert!(got[0].logprob < 0.0 && got[1].logprob.is_nan());
}

#[test]
fn every_level_agrees_with_the_definitions() {
    // The vocabularies end inside a vector, a panel, a tile and a span.
    for v in [1, 2, 15, 16, 17, 47, 48, 49, 63, 577, 3000, 24_576, 24_577, 50_001] {
        for scale in [0.01, 1.0, 8.0, 60.0] {
            let logits: Vec<f32> = numbers(v, v as u64).iter().map(|x| x * scale).collect();
            let largest = (0..v).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            let targets: Vec<u32> = [0, v / 3, v / 2, v - 1, largest].map(|target| target as u32).to_vec();
            for top_k in [1, 5, 20, 100] {
                let ways = all_ways(&logits, &targets, top_k);
                let (_, truth) = ways.last().unwrap();
                for (name, got) in &ways {
                    for (got, truth) in got.iter().zip(truth) {
                        // Relative to the largest term, 1, the others are rounded to 2^-24.
                        assert_close(&format!("{name}, {v} words, scale {scale}, top {top_k}"), got, truth, 1e-5, 2e-7);
                    }
                }
            }
        }
    }
}

#[test]
fn logits_that_grow_or_fall_with_the_id() {
    // A new largest logit in every tile, with thresholds that every word passes; and the opposite.
    for slope in [1e-3, -1e-3, 0.02] {
        let logits: Vec<f32> = (0..30_000).map(|id| id as f32 * slope).collect();
        let ways = all_ways(&logits, &[0, 15_000, 29_999], 20);
        let (_, truth) = ways.last().unwrap();
        for (name, got) in &ways {
            for (got, truth) in got.iter().zip(truth) {
                assert_close(&format!("{name}, slope {slope}"), got, truth, 1e-5, 1e-9);
            }
        }
    }
}

/// Later logits rescale the sums and raise the thresholds of a row's beginning.
#[test]
fn what_comes_late_in_a_row_counts_as_much() {
    type Variant = (&'static str, fn(usize, f32) -> f32);
    let variants: [Variant; 4] = [
        ("one is larger", |behind, logit| if behind == 5 { 25.0 } else { logit }),
        ("one has all the mass", |behind, logit| if behind == 5 { 200.0 } else { logit }),
        ("nothing in front", |behind, logit| if behind > 3000 { f32::NEG_INFINITY } else { logit }),
        ("many are larger", |behind, logit| if behind < 6000 { logit + 40.0 } else { logit }),
    ];
    for v in [30_000, 30_001] {
        for (variant, of) in variants {
            let noise = numbers(v, v as u64);
            let logits: Vec<f32> = noise.iter().enumerate().map(|(id, x)| of(v - id, 5.0 * x)).collect();
            let targets = [0, v as u32 / 2, v as u32 - 5, v as u32 - 1];
            for top_k in [1, 20, 100] {
                let ways = all_ways(&logits, &targets, top_k);
                let (_, truth) = ways.last().unwrap();
                for (name, got) in &ways {
                    for (got, truth) in got.iter().zip(truth) {
                        assert_close(&format!("{name}, {variant}, {v} words, top {top_k}"), got, truth, 1e-5, 2e-7);
                    }
                }
            }
        }
    }
}

/// Random hidden states and weights, with the logits in f64, rounded to f32.
fn random_head(dtype: Dtype, n: usize, width: usize, v: usize) -> (Vec<f32>, Vec<f32>, Vec<Vec<f32>>) {
    let (hidden, weight) = (numbers(n * width, 11), numbers(v * width, 12));
    let logits = hidden
        .chunks(width)
        .map(|h| {
            let dot = |w: &[f32]| h.iter().zip(w).map(|(h, w)| product(dtype, *h, *w)).sum::<f64>() as f32;
            weight.chunks(width).map(dot).collect()
        })
        .collect();
    (hidden, weight, logits)
}

#[test]
fn whole_heads_agree_with_logits_in_f64() {
    for dtype in DTYPES {
        for (n, width, v) in [(1, 63, 1000), (13, 577, 200), (70, 16, 25_000)] {
            let (hidden, weight, logits) = random_head(dtype, n, width, v);
            let targets: Vec<u32> = (0..n).map(|i| (i * 131 % v) as u32).collect();
            let truth: Vec<_> = logits.iter().zip(&targets).map(|(l, &target)| statistics_of_logits(l, target, 20)).collect();
            let options = HeadOptions::default();
            let head = |kernels| Matrix::new([Ok(tensor(&weight, v, width))], dtype, kernels).unwrap();
            let fused = head(Kernels::Fused);
            let mut ways: Vec<_> = Level::available()
                .into_iter()
                .map(|level| {
                    let got =
                        fused::head_statistics(level, &hidden, &fused.panels().unwrap(), &targets, &options, Curves::default()).0;
                    (level.to_string(), got)
                })
                .collect();
            let reference = head_statistics(&tensor(&hidden, n, width), &head(Kernels::Reference), &targets, &options);
            ways.push(("reference".into(), reference.unwrap()));
            for (name, got) in ways {
                for (got, truth) in got.iter().zip(&truth) {
                    // The logits, up to 40 here, have rounding errors of a few 2^-20, which affect every statistic.
                    assert_close(&format!("{name} {dtype} [{n}, {width}] {v}"), got, truth, 2e-5, 1e-6);
                }
            }
        }
    }
}

#[test]
fn divergences_by_hand() {
    let close = |found: f32, expected: f64| assert!((f64::from(found) - expected).abs() < 1e-7, "{found} for {expected}");
    let log = |probabilities: &[f32]| probabilities.iter().map(|p| p.ln()).collect::<Vec<f32>>();
    // KL(reference || model) = 1/2 ln 2 + 1/2 ln (2/3), in the other direction 1/4 ln (1/2) + 3/4 ln (3/2).
    let found = divergence_of_logits(&log(&[0.25, 0.75]), &log(&[0.5, 0.5]));
    close(found.from_reference, 0.5 * 2f64.ln() + 0.5 * (2.0 / 3.0f64).ln());
    close(found.to_reference, 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln());
    // A constant added to all logits has no effect, and tokens that have no mass in the reference cost nothing.
    close(divergence_of_logits(&[-1.0, -1.0, -1.0], &[7.0, 7.0, f32::NEG_INFINITY]).from_reference, 1.5f64.ln());
    assert_eq!(divergence_of_logits(&[0.1, 3.0, -2.0], &[0.1, 3.0, -2.0]), Divergence::default());
    assert!(divergence_of_logits(&[0.0, 0.0], &[f32::NAN, 0.0]).from_reference.is_nan());
}

/// Distributions that are far apart, and close ones, whose terms cancel, so that f32 is only accurate above a few millionths of a nat. Logits
/// of some tens have rounding errors of a few 2^-20, which change a divergence by that times the distance of the distributions: at most
/// sqrt(KL / 2) (Pinsker).
#[test]
fn fused_divergences_are_the_references() {
    for (n, width, v) in [(1, 63, 1000), (13, 57, 200), (40, 16, 25_000)] {
        for distance in [1.0, 0.1, 1e-3] {
            let (hidden, weight, _) = random_head(Dtype::F32, n, width, v);
            let hidden: Vec<f32> = hidden.iter().map(|h| 0.2 * h).collect();
            let moved: Vec<f32> =
                hidden.iter().zip(numbers(n * width, 13)).map(|(h, noise)| h + 0.2 * distance * noise).collect();
            let targets: Vec<u32> = (0..n).map(|i| (i * 131 % v) as u32).collect();
            let options = HeadOptions { softcap: Some(30.0), ..HeadOptions::default() };
            let found = [Kernels::Fused, Kernels::Reference].map(|kernels| {
                let head = Matrix::new([Ok(tensor(&weight, v, width))], Dtype::F32, kernels).unwrap();
                let of_reference = logits(&tensor(&hidden, n, width), &head, &options).unwrap();
                divergences(&tensor(&moved, n, width), &head, &targets, &of_reference, &options).unwrap()
            });
            for (fused, reference) in found[0].iter().zip(&found[1]) {
                let near = |fused: f32, reference: f32| {
                    (fused - reference).abs() <= 4e-6 + 6e-5 * (reference / 2.0).sqrt() + 2e-5 * reference
                };
                let (own, other) = (fused.1, reference.1);
                assert!(near(own.from_reference, other.from_reference), "{distance}: {own:?} {other:?}");
                assert!(near(own.to_reference, other.to_reference), "{distance}: {own:?} {other:?}");
                assert_close("divergences", &fused.0, &reference.0, 2e-5, 1e-6);
            }
        }
    }
}

#[test]
fn a_token_is_the_same_in_every_batch_and_on_any_number_of_threads() {
    let (n, width, v) = (75, 33, 25_000);
    for dtype in DTYPES {
        let (hidden, weight) = (numbers(n * width, 1), numbers(v * width, 2));
        let targets: Vec<u32> = (0..n).map(|i| (i * 331 % v) as u32).collect();
        let head = Matrix::new([Ok(tensor(&weight, v, width))], dtype, Kernels::Fused).unwrap();
        let panels = head.panels().unwrap();
        for level in Level::available() {
            let run = |rows: std::ops::Range<usize>| {
                let hidden = &hidden[rows.start * width..rows.end * width];
                fused::head_statistics(level, hidden, &panels, &targets[rows], &HeadOptions::default(), Curves::default()).0
            };
            let all = run(0..n);
            for rows in [0..1, 3..4, 3..8, 10..75, 74..75] {
                assert_eq!(run(rows.clone()), all[rows], "{level} {dtype}");
            }
            let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(one_thread.install(|| run(0..n)), all, "{level} {dtype}");
        }
    }
}

#[test]
fn softcapped_logits() {
    let (n, width, v, cap) = (9, 64, 500, 3.0);
    let (hidden, weight, logits) = random_head(Dtype::F32, n, width, v);
    let options = HeadOptions { softcap: Some(cap), ..HeadOptions::default() };
    let targets: Vec<u32> = (0..n as u32).collect();
    for kernels in implementations() {
        let head = Matrix::new([Ok(tensor(&weight, v, width))], Dtype::F32, kernels).unwrap();
        let got = head_statistics(&tensor(&hidden, n, width), &head, &targets, &options).unwrap();
        for ((got, logits), &target) in got.iter().zip(&logits).zip(&targets) {
            let capped: Vec<f32> =
                logits.iter().map(|&l| (f64::from(cap) * (f64::from(l) / f64::from(cap)).tanh()) as f32).collect();
            assert_close(&kernels.to_string(), got, &statistics_of_logits(&capped, target, 20), 2e-5, 1e-6);
        }
    }
}

#[test]
fn entropies_over_the_k_largest() {
    // p = 1/2, 1/4, 1/8, 1/8: H_1 = 0, H_2 = ln 3 - 2/3 ln 2, H_4 = 7/4 ln 2.
    let logits: Vec<f32> = [0.125f32, 0.5, 0.125, 0.25].iter().map(|p| p.ln()).collect();
    for kernels in implementations() {
        let head = Matrix::new([Ok(tensor(&logits, 4, 1))], Dtype::F32, kernels).unwrap();
        let got = topk_entropies(&tensor(&[1.0, 0.0], 2, 1), &head, 6, &HeadOptions::default()).unwrap();
        let ln2 = 2f32.ln();
        let expected = [0.0, 3f32.ln() - 2.0 / 3.0 * ln2, 0.955_699_9, 1.75 * ln2, 1.75 * ln2, 1.75 * ln2];
        assert!(got[0].iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6), "{:?}", got[0]);
        let uniform: Vec<f32> = [1f32, 2.0, 3.0, 4.0, 4.0, 4.0].iter().map(|k| k.ln()).collect();
        assert!(got[1].iter().zip(uniform).all(|(got, expected)| (got - expected).abs() < 1e-6), "{:?}", got[1]);
    }
}

#[test]
fn curves_come_with_the_statistics_and_change_none() {
    let (n, width, v, k_max) = (11, 24, 3000, 64);
    let (hidden, weight, logits) = random_head(Dtype::F32, n, width, v);
    let options = HeadOptions::default();
    let targets: Vec<u32> = (0..n as u32).map(|n| n * 250).collect();
    let of = [7, 0, 10, 3];
    for kernels in implementations() {
        let (hidden, head) =
            (tensor(&hidden, n, width), Matrix::new([Ok(tensor(&weight, v, width))], Dtype::F32, kernels).unwrap());
        let plain = head_statistics(&hidden, &head, &targets, &options).unwrap();
        let (statistics, curves) =
            head_statistics_and_curves(&hidden, &head, &targets, &options, Curves { of: &of, k_max }).unwrap();
        assert_eq!(statistics, plain, "{kernels}");
        assert_eq!(curves.len(), of.len());
        for (curve, &target) in curves.iter().zip(&of) {
            // 2e-6 nats, because the logits are sums of 24 products in another order.
            let expected = reference::topk_entropies_up_to(&logits[target as usize], k_max);
            assert!(curve.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-6), "{kernels}: {curve:?}, {expected:?}");
            assert!((curve[19] / 20f32.ln() - statistics[target as usize].entropy_topk).abs() < 1e-6);
        }
        let beyond = head_statistics_and_curves(&hidden, &head, &targets, &options, Curves { of: &[11], k_max });
        assert!(beyond.unwrap_err().message().contains("of 11 targets"));
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let head = Matrix::new([Ok(tensor(&numbers(30, 1), 10, 3))], Dtype::F32, Kernels::Fused).unwrap();
    let hidden = tensor(&numbers(6, 2), 2, 3);
    let message = |hidden: &Tensor, targets: &[u32], top_k: usize| {
        let options = HeadOptions { top_k, softcap: None };
        head_statistics(hidden, &head, targets, &options).unwrap_err().message().to_owned()
    };
    assert_eq!(message(&hidden, &[1], 20), "2 hidden states came with 1 targets");
    assert_eq!(message(&hidden, &[1, 10], 20), "token id 10 lies outside the model's vocabulary of 10");
    assert_eq!(message(&hidden, &[1, 2], 0), "the entropy over the K largest logits needs K >= 1, and got K = 0");
    assert!(message(&tensor(&[1.0, 2.0], 1, 2), &[1], 20).contains("[N, 3]"));
    assert!(head_statistics(&hidden.narrow(0, 0, 0).unwrap(), &head, &[], &HeadOptions::default()).unwrap().is_empty());
}
