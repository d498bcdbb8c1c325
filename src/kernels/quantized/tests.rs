use super::*;
use crate::kernels::level::Level;
use crate::kernels::testing::{close, noise};

const FORMS: [Form; 5] = [Form::Nibbles, Form::WideNibbles, Form::Bytes, Form::BytesAndLeast, Form::ShortBytes];

/// Blocks with numbers over the whole range of the form.
fn blocks(form: Form, out_features: usize, in_features: usize, seed: u64) -> Blocks {
    let n_blocks = in_features / form.len();
    let numbers = noise(out_features * in_features, 1.0, seed);
    let scales = noise(2 * out_features * n_blocks, 1.0, seed + 1);
    Blocks::new(form, out_features, in_features, |n, i| {
        let mut values = [0; 32];
        let numbers = &numbers[n * in_features + i * form.len()..][..form.len()];
        for (value, x) in values.iter_mut().zip(numbers) {
            *value = if form.bits() == 4 { (x * 7.99 + 8.0) as i8 } else { (x * 128.0).floor() as i8 };
        }
        let [scale, least] = [0, 1].map(|j| half::f16::from_f32(scales[2 * (n * n_blocks + i) + j] / 16.0).to_f32());
        let has_least = !matches!(form, Form::Bytes | Form::ShortBytes);
        Group { values, scale, least: if has_least { least * 4.0 } else { 0.0 } }
    })
    .unwrap()
}

/// The product with the dequantised weight in f64, and the sum of the absolute values of its terms.
fn expected(x: &[f32], parts: &[Blocks], residual: Option<&[f32]>) -> (Vec<f64>, f64) {
    let k = parts[0].in_features();
    let (mut y, mut largest) = (Vec::new(), 0f64);
    for x in x.chunks_exact(k) {
        for part in parts {
            for n in 0..part.out_features() {
                let mut w = vec![0.0; k];
                part.row_into(n, &mut w);
                let products = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                largest = largest.max(products.clone().map(f64::abs).sum());
                let residual = residual.map_or(0.0, |residual| f64::from(residual[y.len()]));
                y.push(residual + products.sum::<f64>());
            }
        }
    }
    (y, largest)
}

/// Every form at every level, with one row and many, outputs that do not fill panels, and parts of several forms.
#[test]
fn products_are_those_of_the_dequantised_weight() {
    for (i, form) in FORMS.into_iter().enumerate() {
        for (n_rows, outputs, k) in
            [(1, 1, 32), (1, 47, 96), (2, 48, 64), (3, 50, 160), (5, 100, 32), (9, 144, 256), (101, 30, 64)]
        {
            let parts = [blocks(form, outputs, k, 3), blocks(FORMS[(i + 1) % FORMS.len()], 7, k, 4)];
            let x = noise(n_rows * k, 2.0, 5);
            let residual = noise(n_rows * (outputs + 7), 2.0, 6);
            for residual in [None, Some(residual.as_slice())] {
                let (expected, largest) = expected(&x, &parts, residual);
                for level in Level::available() {
                    let y = multiply(level, &x, n_rows, &parts, residual);
                    // Scale and minimum are added separately and may be larger than their sum; a few roundings of 2^-24 each.
                    close(&y, &expected, 1e-6 * largest.max(1.0), &format!("{form:?} {n_rows} x {outputs} x {k} at {level}"));
                }
            }
        }
    }
}

/// Bit-identical, so that an answer does not depend on what else is generated at the time.
#[test]
fn a_row_is_the_same_alone_and_among_others() {
    for form in FORMS {
        let (n_rows, k) = (103, 96);
        let parts = [blocks(form, 70, k, 8)];
        let x = noise(n_rows * k, 1.0, 9);
        for level in Level::available() {
            let all = multiply(level, &x, n_rows, &parts, None);
            for row in 0..n_rows {
                let alone = multiply(level, &x[row * k..][..k], 1, &parts, None);
                assert_eq!(alone, &all[row * 70..][..70], "{form:?} row {row} at {level}");
            }
        }
    }
}

/// Numbers that a form cannot represent exactly are refused.
#[test]
fn scales_that_do_not_fit_are_refused() {
    let with = |form: Form, scale: f32, least: f32| {
        Blocks::new(form, 1, 32, |_, _| Group { values: [1; 32], scale, least }).map(|blocks| {
            let mut row = [0.0; 32];
            blocks.row_into(0, &mut row);
            row[31]
        })
    };
    assert_eq!(with(Form::Nibbles, 0.5, -4.0), Some(-3.5));
    // The smallest f16 above 0, and a number with more digits than f16 has.
    assert_eq!(with(Form::Nibbles, 2f32.powi(-24), 0.0), Some(2f32.powi(-24)));
    assert_eq!(with(Form::Nibbles, 1.0 + 2f32.powi(-12), 0.0), None);
    assert_eq!(with(Form::Nibbles, 70_000.0, 0.0), None);
    assert_eq!(with(Form::WideNibbles, 70_000.0, 0.0), Some(70_000.0));
    assert_eq!(with(Form::Bytes, f32::NAN, 0.0), None);
    assert_eq!(with(Form::BytesAndLeast, 1.0, f32::INFINITY), None);
    assert!(Blocks::new(Form::Bytes, 1, 48, |_, _| Group { values: [0; 32], scale: 1.0, least: 0.0 }).is_none());
}

/// Every level's own conversion handles subnormal and negative f16 scales and zeros.
#[test]
fn halves_are_converted_exactly_at_every_level() {
    let scales: Vec<f32> =
        (0..0x7c00u16).step_by(37).chain(0x8000..0x8010).map(|bits| half::f16::from_bits(bits).to_f32()).collect();
    let group = |n: usize, _| Group { values: [1; 32], scale: scales[n], least: scales[scales.len() - 1 - n] };
    let parts = [Blocks::new(Form::Nibbles, scales.len(), 32, group).unwrap()];
    let mut x = [0.0; 32];
    x[0] = 1.0;
    for level in Level::available() {
        let y = multiply(level, &x, 1, &parts, None);
        for (n, y) in y.iter().enumerate() {
            assert_eq!(*y, scales[n] + scales[scales.len() - 1 - n], "{n} at {level}");
        }
    }
}
