//! What a batch takes of the GPU's memory is what was reckoned for it, of every family.

use std::ops::Range;
use std::path::Path;

use super::families::FAMILIES;
use super::{Batch, LoadOptions, Model, Placement, Reference};
use crate::kernels::testing::device;
use crate::kernels::{Dtype, Kernels, Segment};

/// In an arena of the batch's own size and no more; a context that ends within a segment goes through the gated delta rule once more.
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
        // Six trees, next to whose arrays what is reckoned with for small things is small.
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
