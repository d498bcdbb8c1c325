//! Compares fused and reference products with sums in f64.

use super::*;
use crate::kernels::testing::{DTYPES, held, implementations, implementations_in, noise, product};

/// Reproducible numbers in [-1, 1).
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    noise(n, 1.0, seed)
}

fn tensor(values: &[f32], rows: usize, columns: usize) -> Tensor {
    Tensor::from_slice(values, (rows, columns), &Device::Cpu).unwrap()
}

fn rounded(dtype: Dtype, values: &[f32]) -> Vec<f32> {
    values.iter().map(|&x| held(dtype, x)).collect()
}

fn packed(dtype: Dtype, w_nk: &[f32], k: usize) -> Panels {
    let mut panels = Panels::new(k, dtype);
    panels.push(w_nk);
    panels
}

/// The error of `K` products of numbers up to 1 with random signs: the sums stay near `sqrt(K)`, and `K` roundings of half a unit
/// each add up to about `K 2^-25` if they all go one way. The constant covers small `K`, whose sums can be larger than `sqrt(K)`.
fn tolerance(k: usize) -> f64 {
    (k as f64 + 8.0) * 2f64.powi(-24)
}

fn check_product(dtype: Dtype, t: usize, k: usize, n: usize) {
    let (x, w, residual) = (numbers(t * k, 1 + t as u64), numbers(n * k, 2 + n as u64), numbers(t * n, 3));
    let panels = packed(dtype, &w, k);
    let truth = |row: usize, column: usize| -> f64 { (0..k).map(|i| product(dtype, x[row * k + i], w[column * k + i])).sum() };
    // In two parts the smaller products are also numbers, and roundings of sums: half as much again, with some margin.
    let tolerance = |k| if dtype == Dtype::Bf16x3 { 2.0 * tolerance(k) } else { tolerance(k) };
    let mut results: Vec<(String, Vec<f32>, Vec<f32>)> = Level::available()
        .into_iter()
        .map(|level| {
            let y = fused::multiply(level, &x, t, &panels, None);
            (level.to_string(), y, fused::multiply(level, &x, t, &panels, Some(&residual)))
        })
        .collect();
    let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let plain = Matrix::new([Ok(tensor(&w, n, k))], dtype, Kernels::Reference).unwrap();
    let (x_tk, residual_tn) = (tensor(&x, t, k), tensor(&residual, t, n));
    let with_residual = flat(plain.forward_add(&x_tk, &residual_tn).unwrap());
    results.push(("reference".into(), flat(plain.forward(&x_tk).unwrap()), with_residual));
    for (name, y, y_plus) in results {
        assert_eq!((y.len(), y_plus.len()), (t * n, t * n));
        for i in 0..t * n {
            let truth = truth(i / n, i % n);
            let error = (f64::from(y[i]) - truth).abs();
            assert!(error <= tolerance(k), "{name} {dtype} [{t}, {k}] [{n}, {k}] element {i}: {} is not {truth}", y[i]);
            assert_eq!(y_plus[i], residual[i] + y[i], "{name}: the residual is added last");
        }
    }
}

#[test]
fn one_hand_made_product() {
    // [1 2 3; 4 5 6] times the rows (1, 0, -1) and (0.5, 0.5, 0.5): exact in bf16, too.
    let x = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3);
    let w = tensor(&[1.0, 0.0, -1.0, 0.5, 0.5, 0.5], 2, 3);
    for dtype in DTYPES {
        for kernels in implementations_in(dtype) {
            let matrix = Matrix::new([Ok(w.clone())], dtype, kernels).unwrap();
            assert_eq!(matrix.forward(&x).unwrap().to_vec2::<f32>().unwrap(), [[-2.0, 3.0], [-2.0, 7.5]]);
            let residual = tensor(&[10.0, 20.0, 30.0, 40.0], 2, 2);
            let sum = matrix.forward_add(&x, &residual).unwrap();
            assert_eq!(sum.to_vec2::<f32>().unwrap(), [[8.0, 23.0], [28.0, 47.5]]);
        }
    }
}

#[test]
fn odd_sizes_agree_with_f64_at_every_level() {
    const SIZES: [usize; 10] = [1, 2, 15, 16, 17, 47, 48, 49, 63, 577];
    for dtype in DTYPES {
        for t in SIZES {
            check_product(dtype, t, 65, 50);
        }
        for k in SIZES {
            check_product(dtype, 9, k, 49);
        }
        for n in SIZES {
            check_product(dtype, 7, 33, n);
        }
        // Two blocks of k, rows and panels, none of them whole.
        check_product(dtype, 99, 1601, 17);
        check_product(dtype, 97, 7, 16 * 48 + 1);
    }
}

#[test]
fn two_parts_are_hundreds_of_times_closer_to_f32_than_one() {
    let (t, k, n) = (16, 576, 96);
    let (x, w) = (numbers(t * k, 7), numbers(n * k, 8));
    let truth: Vec<f64> =
        (0..t * n).map(|i| (0..k).map(|j| product(Dtype::F32, x[i / n * k + j], w[i % n * k + j])).sum()).collect();
    for level in Level::available() {
        let [f32, bf16, bf16x3] = DTYPES.map(|dtype| {
            let y = fused::multiply(level, &x, t, &packed(dtype, &w, k), None);
            (y.iter().zip(&truth).map(|(y, truth)| (f64::from(*y) - truth).powi(2)).sum::<f64>() / truth.len() as f64).sqrt()
        });
        assert!(bf16x3 < bf16 / 300.0 && bf16x3 < 40.0 * f32, "{level}: {f32:e}, {bf16:e}, {bf16x3:e}");
    }
}

/// Numbers without a near bf16 give the same as in f32: those that round to infinity, infinities and NaN.
#[test]
fn the_largest_numbers_infinities_and_nan_multiply_as_in_f32() {
    let infinity = f32::INFINITY;
    let edges = [3.4e38, -3.4e38, infinity, -infinity, f32::NAN, 0.0, 1.0, -3.7];
    let others = [0.3, -0.7, 1e-3, 1.0, 0.0, 1.003e30, infinity];
    let multiplied = |level: Level, dtype: Dtype, [x, w]: [f32; 2], k: usize| {
        let row = |last: f32| -> Vec<f32> { vec![0.0; k - 1].into_iter().chain([last]).collect() };
        fused::multiply(level, &row(x), 1, &packed(dtype, &row(w), k), None)[0]
    };
    for level in Level::available() {
        for (edge, other, k) in
            edges.into_iter().flat_map(|edge| others.map(|other| [(edge, other, 1), (edge, other, 33)])).flatten()
        {
            // Finite factors whose product overflows depend on f32's own limit.
            if edge.is_finite() && other.is_finite() && !(edge * other).is_finite() {
                continue;
            }
            for factors in [[edge, other], [other, edge]] {
                let [f32, found] = [Dtype::F32, Dtype::Bf16x3].map(|dtype| multiplied(level, dtype, factors, k));
                let near = f32 == found || (f32 - found).abs() <= 1e-4 * f32.abs() || f32.is_nan() && found.is_nan();
                assert!(near, "{level}: the product of {factors:?} is {found} for {f32}");
            }
        }
    }
}

#[test]
fn no_rows_and_no_outputs() {
    for dtype in DTYPES {
        for (t, k, n) in [(0, 3, 5), (2, 3, 0), (0, 1, 0)] {
            check_product(dtype, t, k, n);
        }
    }
}

#[test]
fn a_row_is_the_same_in_every_batch_and_on_any_number_of_threads() {
    let (t, k, n) = (121, 801, 100);
    let (x, w) = (numbers(t * k, 5), numbers(n * k, 6));
    for dtype in DTYPES {
        let panels = packed(dtype, &w, k);
        for level in Level::available() {
            let all = fused::multiply(level, &x, t, &panels, None);
            for row in [0, 1, 7, 8, 95, 96, 120] {
                let alone = fused::multiply(level, &x[row * k..][..k], 1, &panels, None);
                assert_eq!(alone, all[row * n..][..n], "{level} {dtype} row {row}");
            }
            let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(one_thread.install(|| fused::multiply(level, &x, t, &panels, None)), all);
        }
    }
}

#[test]
fn parts_are_joined_wherever_they_end_and_rows_come_back_as_stored() {
    let k = 5;
    let sizes = [1, 46, 3, 100, 48];
    let parts: Vec<Vec<f32>> = sizes.iter().map(|&n| numbers(n * k, n as u64)).collect();
    let whole = tensor(&parts.concat(), sizes.iter().sum(), k);
    for dtype in DTYPES {
        for kernels in implementations_in(dtype) {
            let tensors = parts.iter().zip(sizes).map(|(part, n)| Ok(tensor(part, n, k)));
            let matrix = Matrix::new(tensors, dtype, kernels).unwrap();
            assert_eq!((matrix.out_features(), matrix.in_features()), (198, 5));
            let ids = [197, 0, 1, 46, 47, 48, 49, 50, 0];
            let expected = whole.index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0).unwrap();
            let expected = rounded(dtype, &expected.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            let got = matrix.rows(&ids).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(got, expected, "{dtype} {kernels}");
            assert!(matrix.rows(&[198]).unwrap_err().message().contains("row 198"));
        }
    }
}

#[test]
fn a_packed_weight_takes_its_own_size_in_memory() {
    let w = tensor(&numbers(96 * 10, 1), 96, 10);
    let bytes = |dtype, kernels| Matrix::new([Ok(w.clone())], dtype, kernels).unwrap().bytes();
    assert_eq!(bytes(Dtype::F32, Kernels::Fused), 96 * 10 * 4);
    assert_eq!(bytes(Dtype::Bf16, Kernels::Fused), 96 * 10 * 2);
    assert_eq!(bytes(Dtype::F32, Kernels::Reference), 96 * 10 * 4);
    assert_eq!(bytes(Dtype::Bf16, Kernels::Reference), 96 * 10 * 2);
    // Ten inputs take as many words as 32.
    assert_eq!(bytes(Dtype::Bf16x3, Kernels::Fused), 96 * 32 * 4);
    assert_eq!(bytes(Dtype::Bf16x3, Kernels::Reference), 96 * 10 * 4);
}

#[test]
fn views_are_multiplied_as_what_they_show() {
    let matrix = Matrix::new([Ok(tensor(&numbers(20 * 6, 1), 20, 6))], Dtype::F32, Kernels::Fused).unwrap();
    let x = tensor(&numbers(6 * 9, 2), 6, 9);
    let view = x.t().unwrap().narrow(0, 2, 5).unwrap();
    let copy = tensor(&view.contiguous().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), 5, 6);
    let product = |x: &Tensor| matrix.forward(x).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(product(&view), product(&copy));
}

#[test]
fn gradients_reach_the_input_and_the_residual() {
    let (t, k, n) = (3, 5, 800);
    for dtype in DTYPES {
        // Numbers that bf16 represents exactly: the reference rounds the gradient in the backward pass of its cast, which changes
        // nothing then.
        let w = tensor(&rounded(Dtype::Bf16, &numbers(n * k, 1)), n, k);
        let gradients = |kernels: Kernels| {
            let matrix = Matrix::new([Ok(w.clone())], dtype, kernels).unwrap();
            let x = candle_core::Var::from_tensor(&tensor(&rounded(Dtype::Bf16, &numbers(t * k, 2)), t, k)).unwrap();
            let residual = candle_core::Var::from_tensor(&tensor(&numbers(t * n, 3), t, n)).unwrap();
            let weights = tensor(&numbers(t * n, 4), t, n);
            let once = (matrix.forward(&x).unwrap() * &weights).unwrap().sum_all().unwrap();
            let y = matrix.forward_add(&x, &residual).unwrap();
            let loss = (once + (y * &weights).unwrap().sum_all().unwrap()).unwrap();
            let gradients = loss.backward().unwrap();
            let flat = |var: &Tensor| gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (flat(&x), flat(&residual))
        };
        let (fused, plain) = (gradients(Kernels::Fused), gradients(Kernels::Reference));
        assert_eq!(fused.1, plain.1);
        // Two sums of 800 products; the reference in bf16 rounds each result to 8 bits. In two parts some products are omitted, of
        // up to 2^-17 of the size of each.
        let tolerance = match dtype {
            Dtype::F32 => 1e-4,
            Dtype::Bf16 => 0.5,
            Dtype::Bf16x3 => 1e-3,
        };
        for (fused, plain) in fused.0.iter().zip(&plain.0) {
            assert!((fused - plain).abs() <= tolerance, "{dtype}: {fused} is not {plain}");
        }
    }
}

#[test]
fn wrong_shapes_are_refused_in_words() {
    for kernels in implementations() {
        let matrix = Matrix::new([Ok(tensor(&numbers(12, 1), 4, 3))], Dtype::F32, kernels).unwrap();
        let error = matrix.forward(&tensor(&[1.0; 4], 2, 2)).unwrap_err();
        assert_eq!(error.message(), "a matrix with 3 inputs takes [T, 3] f32, and got [2, 2] F32");
        let error = matrix.forward_add(&tensor(&[1.0; 6], 2, 3), &tensor(&[1.0; 4], 1, 4)).unwrap_err();
        assert_eq!(error.message(), "a residual of [2, 4] f32 was expected, and [1, 4] F32 found");
        assert!(Matrix::new([], Dtype::F32, kernels).is_err());
        let parts = [Ok(tensor(&numbers(12, 1), 4, 3)), Ok(tensor(&numbers(12, 1), 3, 4))];
        assert!(Matrix::new(parts, Dtype::F32, kernels).is_err());
        assert!(Matrix::new([Ok(Tensor::zeros((3, 0), DType::F32, &Device::Cpu).unwrap())], Dtype::F32, kernels).is_err());
    }
}
