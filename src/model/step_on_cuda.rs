//! A step of writing on a GPU: the newest tokens of sequences go through the blocks of `on_cuda.rs`, and leave their keys and values in
//! pages there. Only the logits of what may come next travel, or
//! which of them is the largest.
//!
//! Rows are computed in tiles of one size, so that batches are padded with tokens that no sequence has: what a sequence gets does not depend
//! on those beside it.

use super::cache::CacheSize;
use super::config::Config;
use super::decoder::Decoder;
use super::memory;
use super::on_cuda::{Inputs, OnCuda, Sizes, check_positions, on_device};
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::attention::{AttentionShape, Stretch, positions_of};
use crate::kernels::cuda::{Arena, Array, LastRoom, PagedKeys, Pinned, Rows, StepLists, StepPlan, TILE, arena_bytes};

/// Memory of the GPU that is left to products and kernels when the cache is made.
const LEFT_FREE: u64 = 256 << 20;

/// What a step is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Logits `[N, V]` f32, before their cap.
    Logits,
    /// Of each row the id of the largest, the first of equals; `u32::MAX` where a logit is no number.
    Largest,
}

/// What came of it, on the host.
pub(super) struct Fetched {
    pinned: Pinned,
    len: usize,
}

impl Fetched {
    pub(super) fn logits(&self) -> Result<&[f32]> {
        self.pinned.floats(self.len)
    }

    pub(super) fn largest(&self) -> Result<&[u32]> {
        self.pinned.words(self.len)
    }
}

impl OnCuda {
    /// Takes memory for keys and values, and before that for the steps that use them: as many pages as are wanted and fit, or an error that
    /// says how much the fewest would take.
    pub(super) fn keys(&self, name: &str, config: &Config, size: &CacheSize) -> Result<PagedKeys> {
        let (shape, dtype) = (config.attention_shape(0), self.sizes.dtype);
        self.room(step_bytes(&self.sizes, &shape, size)).map(drop)?;
        let page = PagedKeys::page_bytes(&shape, config.layers, dtype) as u64;
        let (free, _) = self.device.memory()?;
        let least = (*size.pages.start() as u64).saturating_mul(page);
        memory::check_device_answers(name, self.device.name(), least.saturating_add(LEFT_FREE), free)?;
        let fits = (free - LEFT_FREE) / page;
        PagedKeys::new(self.device, &shape, config.layers, fits.min(*size.pages.end() as u64) as usize, dtype)
    }

    /// What may follow the last token of each stretch.
    pub(super) fn step(
        &self,
        decoder: &Decoder,
        keys: &PagedKeys,
        ids: &[u32],
        stretches: &[Stretch],
        wanted: Wanted,
    ) -> Result<Fetched> {
        let device = self.device;
        let Sizes { width, vocabulary, dtype, .. } = self.sizes;
        let (held, n) = (ids.len(), stretches.len());
        if n == 0 || stretches.iter().any(|stretch| stretch.tokens.is_empty()) {
            return Err(Error::new("every sequence of a step brings a token at least"));
        }
        let (tokens, n_rows) = (held.next_multiple_of(TILE), n.next_multiple_of(TILE));
        let positions = positions_of(stretches, held)?;
        let shape = check_positions(decoder, &positions)?;
        let plan = StepPlan::new(stretches, tokens, keys.n_pages(), shape, dtype, device.shared_bytes())?;
        // Rows without a token are computed like the first one's, and nobody reads them.
        let padded = |numbers: &mut dyn Iterator<Item = u32>, len: usize| -> Vec<u32> {
            let mut numbers: Vec<u32> = numbers.collect();
            numbers.resize(len, numbers[0]);
            numbers
        };
        let ids = padded(&mut ids.iter().copied(), tokens);
        let positions = padded(&mut positions.iter().map(|&position| position as u32), tokens);
        let rows = padded(&mut stretches.iter().map(|stretch| stretch.tokens.end as u32 - 1), n_rows);

        let buffer = self.room(bytes_of_a_step(&self.sizes, shape, tokens, n_rows, plan.n_words(), plan.n_parts()))?;
        let arena = Arena::new(&buffer, Rows::InTiles);
        // What is fetched comes first in the buffer.
        let (logits, largest) = match wanted {
            Wanted::Logits => (arena.array(n_rows * vocabulary, Stored::F32)?, None),
            Wanted::Largest => {
                let largest = arena.array(n_rows, Stored::F32)?;
                (arena.array(n_rows * vocabulary, Stored::F32)?, Some(largest))
            }
        };
        let [tiles, ranges] = [&plan.before.tiles, &plan.before.ranges];
        let lists = [&ids, &positions, &rows, tiles, ranges, &plan.rows, &plan.queries, &plan.parts, &plan.pages];
        let (sent, _input) = self.send(lists.map(Vec::as_slice), &arena)?;
        let [ids, positions, rows, tiles, ranges, cache_rows, queries, parts, pages] = sent;
        let lists = StepLists { tiles, ranges, rows: cache_rows, queries, parts, pages };
        let room = LastRoom::new(plan.n_parts(), shape, |len| arena.array(len, Stored::F32))?;
        let read = self.read_step(keys, &plan, &lists, &room, decoder.n_blocks() - 1);
        let inputs = Inputs { ids, positions, rows, plan: &plan.before };
        let residual = self.run(decoder, &inputs, &read, &arena)?;
        let head = on_device(decoder.head())?;
        let hidden = arena.array(n_rows * width, head.dtype())?;
        device.rms_norm(residual, &self.norm, decoder.norm.eps, hidden)?;
        device.multiply(hidden, head, logits, false, Rows::InTiles)?;
        let len = match largest {
            None => n * vocabulary,
            Some(largest) => {
                device.largest_of_rows(logits, largest, vocabulary)?;
                n
            }
        };
        let pinned = device.pinned(4 * len)?;
        device.fetch(&buffer, &pinned, 4 * len)?;
        device.synchronize()?;
        Ok(Fetched { pinned, len })
    }

    /// What the heads read of what is kept, with what the step adds to that. Behind the last block only the last tokens go on.
    fn read_step<'a>(
        &self,
        keys: &PagedKeys,
        plan: &StepPlan,
        lists: &StepLists,
        room: &LastRoom,
        last_block: usize,
    ) -> impl Fn(usize, &AttentionShape, Array<'a>, &Arena<'a>) -> Result<Array<'a>> {
        move |index, shape, qkv, arena| {
            let (device, kept) = (self.device, keys.layer(index)?);
            device.keep(qkv, shape, lists, kept)?;
            let read = arena.array(qkv.len() / shape.columns() * self.sizes.mixed, qkv.dtype())?;
            if index != last_block {
                device.attention(qkv, Some(kept), &plan.before, lists.tiles, lists.ranges, shape, read)?;
            }
            device.attend_to_last(qkv, kept, plan, lists, shape, None, room, read)?;
            Ok(read)
        }
    }
}

/// The most that a step of this size is computed in.
fn step_bytes(sizes: &Sizes, shape: &AttentionShape, size: &CacheSize) -> usize {
    let &CacheSize { sequences, tokens, positions, .. } = size;
    let (tokens, n_rows) = (tokens.next_multiple_of(TILE), sequences.next_multiple_of(TILE));
    let words = StepPlan::most_words(tokens, sequences, positions);
    bytes_of_a_step(sizes, shape, tokens, n_rows, words, StepPlan::most_parts(sequences, positions))
}

fn bytes_of_a_step(sizes: &Sizes, shape: &AttentionShape, tokens: usize, n_rows: usize, words: usize, parts: usize) -> usize {
    let f32s = |len: usize| arena_bytes(len, Stored::F32);
    let room: usize = LastRoom::lens(parts, shape).into_iter().map(f32s).sum();
    sizes.batch_bytes(tokens, n_rows) + f32s(n_rows * sizes.vocabulary) + f32s(n_rows) + f32s(words) + room
}
