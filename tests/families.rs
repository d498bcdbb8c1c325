//! Each family against Hugging Face Transformers: all logits of a tiny random checkpoint (tests/fixtures/families/make.py), from
//! its folder and from GGUF, through both kernels, packed with a prefix that two sequences share.

use std::path::Path;

use candle_core::{Device, Tensor};
use diagnose::kernels::{Dtype, Kernels, Segment};
use diagnose::model::{Batch, LoadOptions, Model, Placement, Reference};

/// Of any logit; f32 on both sides, sums in another order.
const TOLERANCE: f32 = 1e-4;

#[test]
fn every_logit_is_that_of_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut folders: Vec<_> = std::fs::read_dir(&fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    let mut failures = Vec::new();
    for folder in folders {
        let gguf = folder.join("model.gguf");
        let gguf = gguf.is_file().then_some(gguf);
        for path in [Some(folder.clone()), gguf].into_iter().flatten() {
            for kernels in [Kernels::Reference, Kernels::Fused] {
                let name = path.strip_prefix(&fixtures).unwrap().display().to_string();
                let difference = worst(&path, &folder.join("logits.safetensors"), kernels);
                println!("{name:30} {kernels:9} max |dlogit| {difference:.1e}");
                // A NaN must not pass.
                if difference.is_nan() || difference > TOLERANCE {
                    failures.push(format!("{name} ({kernels}): {difference:.1e}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The largest difference of any logit at any position of the three sequences.
fn worst(path: &Path, expected: &Path, kernels: Kernels) -> f32 {
    let reference = Reference::resolve(path.to_str(), &|_, _, _| {}).unwrap();
    let model = Model::load(&reference, LoadOptions { dtype: Dtype::F32, kernels, device: Placement::Cpu }, 64).unwrap();
    let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
    let ids = |n: usize| -> Vec<u32> {
        let ids = expected[&format!("ids.{n}")].to_vec1::<i64>().unwrap();
        ids.into_iter().map(|id| id as u32).collect()
    };
    let (a, b, c) = (ids(0), ids(1), ids(2));
    let shared = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    assert!(shared > 0 && shared < b.len());
    // The shared prefix, what follows it in the first and in the second, the third: one batch.
    let all = [&a[..shared], &a[shared..], &b[shared..], &c].concat();
    let mut segments = Vec::new();
    let mut begin = 0;
    let prefix = 0..shared;
    for (length, context) in
        [(shared, vec![]), (a.len() - shared, vec![prefix.clone()]), (b.len() - shared, vec![prefix.clone()]), (c.len(), vec![])]
    {
        segments.push(Segment { tokens: begin..begin + length, context });
        begin += length;
    }
    let batch = Batch { ids: all, segments: segments.into() };
    let rows = |range: std::ops::Range<usize>| range.map(|row| row as u32);
    let tail_of_b = a.len()..a.len() + b.len() - shared;
    let mut worst = 0f32;
    for (n, rows) in [
        rows(0..a.len()).collect::<Vec<_>>(),
        rows(0..shared).chain(rows(tail_of_b.clone())).collect(),
        rows(tail_of_b.end..begin).collect(),
    ]
    .into_iter()
    .enumerate()
    {
        let logits = model.logits(&batch, &rows).unwrap();
        let expected = &expected[&format!("logits.{n}")];
        assert_eq!(logits.dims(), expected.dims());
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (ours, theirs) in values(&logits).into_iter().zip(values(expected)) {
            worst = if (ours - theirs).is_nan() { f32::NAN } else { worst.max((ours - theirs).abs()) };
        }
    }
    worst
}
