//! Tests on a GPU: for every family, a batch fits into the memory that is estimated for it; and padding rows reach no experts.

use std::ops::Range;
use std::path::Path;

use super::block::FeedForward;
use super::cuda_experts::{ExpertSizes, ExpertVectors};
use super::families::FAMILIES;
use super::{Batch, LoadOptions, Model, Placement, Reference};
use crate::kernels::cuda::{Arena, Rows};
use crate::kernels::testing::{device, noise};
use crate::kernels::{Dtype, Kernels, Segment, Stored};

/// The arena has exactly the estimated size. Tokens of a context that ends within a segment pass through the gated delta rule twice.
#[test]
fn a_batch_fits_into_the_memory_that_is_reckoned_for_it() {
    if device().is_none() {
        return;
    }
    let tree = |first: usize| {
        let moved = |range: &Range<usize>| range.start + first..range.end + first;
        let segment = |tokens: Range<usize>, context: &[Range<usize>]| Segment {
            tokens: moved(&tokens),
            context: context.iter().map(moved).collect(),
        };
        let prefix = 0..70;
        [
            segment(0..70, &[]),
            segment(70..80, std::slice::from_ref(&prefix)),
            segment(80..81, &[prefix.clone(), 70..80]),
            segment(81..138, &[0..69, 69..70]),
            segment(138..200, &[]),
        ]
    };
    for family in FAMILIES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family.model_type);
        // With six trees the arrays outweigh the part of the estimate that is set aside for small things.
        let (trees, tokens) = (6, 1200);
        for (dtype, n) in [(Dtype::F32, 1), (Dtype::Bf16, tokens)] {
            let reference = Reference::local(&path).unwrap();
            let options = LoadOptions { dtype, kernels: Kernels::Cuda, device: Placement::Cuda };
            let model = Model::load(&reference, options, 128).unwrap();
            let ids: Vec<u32> = (0..tokens).map(|t| t % 250).collect();
            let segments: Vec<Segment> = (0..trees).flat_map(|number| tree(200 * number)).collect();
            let rows: Vec<u32> = (0..n).collect();
            model.on_cuda.as_ref().unwrap().shrink().unwrap();
            let hidden = model.hidden(&Batch { ids, segments: segments.into() }, &rows);
            assert_eq!(hidden.unwrap().dims(), [n as usize, model.config.hidden_size], "{} {dtype}", family.model_type);
        }
    }
}

/// A decoding step fills its tile with padding rows. These must not be routed, as that would read experts that no token chose.
#[test]
fn rows_that_hold_no_token_reach_no_experts() {
    let Some(device) = device() else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/qwen3_moe");
    let options = LoadOptions { dtype: Dtype::Bf16, kernels: Kernels::Cuda, device: Placement::Cuda };
    let model = Model::load(&Reference::local(&path).unwrap(), options, 128).unwrap();
    let routed = model.decoder.blocks.iter().find_map(|block| match &block.mlp {
        FeedForward::Routed(experts) => Some(experts),
        FeedForward::Dense(_) => None,
    });
    let experts = routed.unwrap();
    let vectors = ExpertVectors::new(device, experts).unwrap();
    let (tokens, held, width) = (64, 3, model.config.hidden_size);
    let sizes = ExpertSizes::new(model.config.experts.as_ref().unwrap());
    let room = device.allocate(sizes.batch_bytes(tokens, width, Stored::Bf16)).unwrap();
    let (mut x, before) = (noise(tokens * width, 1.0, 1), noise(tokens * width, 1.0, 2));
    x[held * width..].fill(f32::NAN);
    let [x, residual] = [&x, &before].map(|numbers| device.upload(numbers, Stored::F32).unwrap());
    let [x, residual] = [&x, &residual].map(|buffer| buffer.array(0, tokens * width, Stored::F32).unwrap());
    vectors.add_to(device, experts, x, held, residual, &Arena::new(&room, Rows::InTiles)).unwrap();
    let after = device.download(residual).unwrap();
    let changed = |row: usize| after[row * width..][..width] != before[row * width..][..width];
    assert!((0..held).all(changed) && !(held..tokens).any(changed));
    assert!(after.iter().all(|x| x.is_finite()));
}
