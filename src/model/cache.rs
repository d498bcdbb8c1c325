//! The state of the sequences being generated, for all layers: paged keys and values of attention layers, with a list of the free pages, and
//! one state per sequence for layers with the gated delta rule.

use std::ops::RangeInclusive;

use super::Config;
use crate::error::{Error, Result};
use crate::kernels::Dtype;
use crate::kernels::attention::LayerCache;
pub use crate::kernels::attention::{PAGE, Stretch};
use crate::kernels::cuda::{DEVICE_PAGE, KeptStates, PagedKeys};
use crate::kernels::delta::DeltaCache;

/// The capacity of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSize {
    /// The number of pages of the model's page size (`Model::page`): the fewest that suffice, and the most that can be used.
    pub pages: RangeInclusive<usize>,
    /// The number of concurrent sequences.
    pub sequences: usize,
    /// The positions of the longest sequence.
    pub positions: usize,
    /// The most tokens that one call adds.
    pub tokens: usize,
}

/// The keys, values and states of all layers, and the free pages.
pub struct Cache {
    pub(super) place: Place,
    free: Vec<usize>,
    /// The number of sequences that hold each page.
    holders: Vec<u32>,
}

/// Where the cache is stored.
pub(super) enum Place {
    /// On the host: one entry per layer.
    Host(Vec<Kept>),
    Device(OnDevice),
}

/// The cache of all layers on a GPU.
pub(super) struct OnDevice {
    /// The keys and values of layers with attention.
    pub keys: PagedKeys,
    /// The states of layers with the gated delta rule, if there are any.
    pub states: Option<KeptStates>,
    /// The index of each layer in `keys` or in `states`: the number of earlier layers of its kind.
    pub numbers: Vec<usize>,
}

/// The cache of one layer.
pub(super) enum Kept {
    Attention(LayerCache),
    Delta(DeltaCache),
}

impl Cache {
    /// A cache with `n_pages` pages of [`PAGE`] positions for `n_sequences` concurrent sequences; the attention of each layer computes in its
    /// entry of `dtypes`. Memory is committed only as it is written.
    pub(super) fn new(config: &Config, dtypes: &[Dtype], n_pages: usize, n_sequences: usize) -> Cache {
        let kept = |layer: usize| match config.delta_shape(layer) {
            None => Kept::Attention(LayerCache::new(&config.attention_shape(layer), n_pages, dtypes[layer])),
            Some(shape) => Kept::Delta(DeltaCache::new(shape, n_sequences)),
        };
        Cache::of(Place::Host((0..config.layers).map(kept).collect()), n_pages)
    }

    pub(super) fn on_device(kept: OnDevice) -> Cache {
        let n_pages = kept.keys.n_pages();
        Cache::of(Place::Device(kept), n_pages)
    }

    fn of(place: Place, n_pages: usize) -> Cache {
        Cache {
            place,
            // Pages are handed out in ascending order, so pages that are never needed are never touched.
            free: (0..n_pages).rev().collect(),
            holders: vec![0; n_pages],
        }
    }

    /// The memory that one page takes in all layers, in bytes.
    pub(super) fn page_bytes(config: &Config, dtypes: &[Dtype]) -> usize {
        let layers = (0..config.layers).filter(|&layer| config.delta_shape(layer).is_none());
        layers.map(|layer| LayerCache::page_bytes(&config.attention_shape(layer), dtypes[layer])).sum()
    }

    /// The memory that one sequence takes in addition to its pages, in bytes.
    pub(super) fn sequence_bytes(config: &Config) -> usize {
        (0..config.layers).filter_map(|layer| config.delta_shape(layer)).map(|shape| DeltaCache::sequence_bytes(&shape)).sum()
    }

    /// Whether a sequence may begin with pages of another. Not if a layer keeps a state, which summarises all earlier tokens.
    pub fn shares_pages(&self) -> bool {
        match &self.place {
            Place::Host(layers) => layers.iter().all(|kept| matches!(kept, Kept::Attention(_))),
            Place::Device(kept) => kept.states.is_none(),
        }
    }

    /// The number of positions in a page.
    pub fn page(&self) -> usize {
        match self.place {
            Place::Host(_) => PAGE,
            Place::Device(_) => DEVICE_PAGE,
        }
    }

    pub(super) fn layers(&mut self) -> Result<&mut [Kept]> {
        match &mut self.place {
            Place::Host(layers) => Ok(layers),
            Place::Device(_) => Err(Error::new("the keys and values of these sequences are on the GPU")),
        }
    }

    /// Takes `n` pages for one sequence; returns `None` and changes nothing if fewer are free.
    pub fn take(&mut self, n: usize) -> Option<Vec<usize>> {
        let pages = self.free.split_off(self.free.len().checked_sub(n)?);
        pages.iter().for_each(|&page| self.holders[page] = 1);
        Some(pages.into_iter().rev().collect())
    }

    /// Registers one more sequence that holds these pages.
    pub fn share(&mut self, pages: &[usize]) {
        pages.iter().for_each(|&page| self.holders[page] += 1);
    }

    /// Registers that a sequence that held these pages has ended.
    pub fn release(&mut self, pages: &[usize]) {
        for &page in pages {
            self.holders[page] -= 1;
            if self.holders[page] == 0 {
                self.free.push(page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_is_free_when_its_last_holder_has_ended() {
        let config = Config::from_json(&json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 9,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5}))
        .unwrap();
        // Two layers with one head each: 4 key and 16 padded value columns, 16 positions, 4 bytes per number.
        assert_eq!(Cache::page_bytes(&config, &[Dtype::F32; 2]), 2 * (4 + 16) * 16 * 4);
        let mut cache = Cache::new(&config, &[Dtype::F32; 2], 5, 1);
        assert!(cache.shares_pages() && Cache::sequence_bytes(&config) == 0);
        let first = cache.take(3).unwrap();
        assert_eq!((first.as_slice(), cache.free.len()), (&[0, 1, 2][..], 2));
        assert!(cache.take(3).is_none());
        cache.share(&first[..2]);
        cache.release(&first);
        assert_eq!(cache.free.len(), 3);
        cache.release(&first[..2]);
        assert_eq!(cache.free.len(), 5);
        let mut all = cache.take(5).unwrap();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
    }
}
