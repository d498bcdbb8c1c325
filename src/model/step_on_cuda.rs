//! A decoding step on a GPU: the newest tokens of the sequences pass through the blocks of `on_cuda.rs`, and their keys and values are stored
//! in pages on the device. Only the next-token logits, or the ids of the chosen tokens, are copied to the host.
//!
//! Rows are computed in tiles: one tile size for the last tokens of all sequences, another for the rest of their prompts. Batches are padded
//! to whole tiles, so that the result of a sequence does not depend on the others.

use super::cache::{CacheSize, OnDevice};
use super::config::Config;
use super::cuda_delta::DeltaVectors;
use super::cuda_parts::on_device;
use super::decoder::Decoder;
use super::delta_net::DeltaNet;
use super::memory;
use super::on_cuda::{Finds, Inputs, OnCuda, Sizes};
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::attention::{AttentionShape, Stretch, positions_of};
use crate::kernels::cuda::{
    Arena, Array, Buffer, DEVICE_PAGE, Device, Indices, KeptStates, LastRoom, PagedKeys, Pinned, Rows, StatesLists, StatesPlan,
    StepLists, StepPlan, StepRows, TILE, arena_bytes, draw_words,
};
use crate::kernels::delta::DeltaShape;

/// GPU memory that the cache leaves free for products and kernels.
const LEFT_FREE: u64 = 256 << 20;

/// The requested result of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Wanted<'a> {
    /// The logits `[N, V]` in f32, before the softcap.
    Logits,
    /// The id of the largest logit of each row, the first of equals; `u32::MAX` if a logit is NaN.
    Largest,
    /// A token per row, sampled with the row's own number in 0..1 with probabilities proportional to `exp(scale logit)`; `u32::MAX` as above.
    Drawn { scale: f32, randoms: &'a [f64] },
}

/// The result of a step, on its way to the host.
pub(super) struct Fetched {
    pinned: Pinned,
    len: usize,
}

impl Fetched {
    pub(super) fn logits(&self) -> Result<&[f32]> {
        self.pinned.floats(self.len)
    }

    pub(super) fn ids(&self) -> Result<&[u32]> {
        self.pinned.words(self.len)
    }
}

/// The sizes of the cache, in bytes.
struct KeptBytes {
    /// The number of layers with the gated delta rule, which keep states instead of pages.
    n_delta: usize,
    page: u64,
    /// The states of one sequence.
    sequence: u64,
}

impl KeptBytes {
    fn new(config: &Config, sizes: &Sizes) -> KeptBytes {
        let n_delta = (0..config.layers).filter(|&layer| config.delta_shape(layer).is_some()).count();
        let sequence = sizes.delta.as_ref().map_or(0, |shape| KeptStates::sequence_bytes(shape, n_delta));
        let page = PagedKeys::page_bytes(&sizes.attention, config.layers - n_delta, sizes.dtype);
        KeptBytes { n_delta, page: page as u64, sequence: sequence as u64 }
    }

    /// The part that does not depend on the number of pages: the states, and the memory that is left free.
    fn always(&self, sequences: usize) -> u64 {
        sequences as u64 * self.sequence + LEFT_FREE
    }
}

/// The least memory that an answer of `positions` needs in addition to the model.
pub(super) fn answer_bytes(config: &Config, sizes: &Sizes, positions: usize) -> u64 {
    let kept = KeptBytes::new(config, sizes);
    positions.div_ceil(DEVICE_PAGE) as u64 * kept.page + kept.always(1)
}

impl OnCuda {
    /// Allocates the scratch memory of the steps and then the cache: as many pages as are wanted and fit. If even the fewest do not fit, the
    /// error says how much they take.
    pub(super) fn keep(&self, name: &str, config: &Config, size: &CacheSize) -> Result<OnDevice> {
        let Sizes { attention, delta, dtype, .. } = &self.sizes;
        self.room(step_bytes(&self.sizes, size)).map(drop)?;
        let is_delta: Vec<bool> = (0..config.layers).map(|layer| config.delta_shape(layer).is_some()).collect();
        let before = |layer: usize| is_delta[..layer].iter().filter(|other| **other == is_delta[layer]).count();
        let bytes = KeptBytes::new(config, &self.sizes);
        let (n_delta, page, always) = (bytes.n_delta, bytes.page, bytes.always(size.sequences));
        let (free, _) = self.device.memory()?;
        let least = (*size.pages.start() as u64).saturating_mul(page).saturating_add(always);
        memory::check_device_answers(name, self.device.name(), least, free)?;
        let fits = (free - always).checked_div(page).unwrap_or(u64::MAX);
        let n_pages = fits.min(*size.pages.end() as u64) as usize;
        Ok(OnDevice {
            keys: PagedKeys::new(self.device, attention, config.layers - n_delta, n_pages, *dtype)?,
            states: delta.as_ref().map(|shape| KeptStates::new(self.device, shape, n_delta, size.sequences)).transpose()?,
            numbers: (0..config.layers).map(before).collect(),
        })
    }

    /// Computes the next-token result for the last token of each stretch.
    pub(super) fn step(
        &self,
        decoder: &Decoder,
        kept: &OnDevice,
        ids: &[u32],
        stretches: &[Stretch],
        wanted: Wanted,
    ) -> Result<Fetched> {
        let device = self.device;
        let Sizes { width, attention, delta, vocabulary, dtype, .. } = &self.sizes;
        let (width, vocabulary, shape) = (*width, *vocabulary, attention);
        let (n, batch) = (stretches.len(), StepRows::new(stretches)?);
        let n_rows = n.next_multiple_of(TILE);
        let positions = positions_of(stretches, ids.len())?;
        self.check_positions(decoder, &positions)?;
        let plan = StepPlan::new(stretches, &batch, kept.keys.n_pages(), shape, *dtype, device.shared_bytes())?;
        let of_states =
            |(states, shape): (&KeptStates, &DeltaShape)| StatesPlan::new(stretches, &batch, shape, states.sequences());
        let states = kept.states.as_ref().zip(delta.as_ref()).map(of_states).transpose()?;
        let positions: Vec<u32> = positions.into_iter().map(|position| position as u32).collect();
        let [ids, positions] = [ids, &positions].map(|numbers| batch.arranged(stretches, numbers));
        let rows: Vec<u32> = (0..n_rows as u32).collect();

        let words = plan.n_words() + states.as_ref().map_or(0, StatesPlan::n_words);
        let buffer = self.room(bytes_of_a_step(&self.sizes, batch.len(), n, words, plan.n_parts()))?;
        let arena = Arena::new(&buffer, Rows::InTiles);
        let logits = arena.array(n_rows * vocabulary, Stored::F32)?;
        let randoms = match wanted {
            Wanted::Drawn { randoms, .. } if randoms.len() == n => randoms,
            Wanted::Drawn { .. } => return Err(Error::new("every draw wants a random number of its own")),
            _ => &[],
        };
        let randoms: Vec<u32> =
            randoms.iter().flat_map(|random| [random.to_bits() as u32, (random.to_bits() >> 32) as u32]).collect();
        let of_attention = [&plan.before.tiles, &plan.before.ranges, &plan.rows, &plan.queries, &plan.parts, &plan.pages];
        let nothing = Vec::new();
        let of_states = match &states {
            Some(plan) => [&plan.steps, &plan.runs, &plan.recalled, &plan.newest, &plan.places],
            None => [&nothing; 5],
        };
        let ([ids, positions, rows, randoms], _inputs) =
            self.send([&ids, &positions, &rows, &randoms].map(Vec::as_slice), &arena)?;
        let ([tiles, ranges, cache_rows, queries, parts, pages], _lists) = self.send(of_attention.map(Vec::as_slice), &arena)?;
        let ([steps, runs, recalled, newest, places], _states) = self.send(of_states.map(Vec::as_slice), &arena)?;
        let going_on = GoingOn {
            device,
            kept,
            plan: &plan,
            lists: StepLists { tiles, ranges, rows: cache_rows, queries, parts, pages },
            room: LastRoom::new(plan.n_parts(), shape, |len| arena.array(len, Stored::F32))?,
            states: states.as_ref().map(|plan| (plan, StatesLists { steps, runs, recalled, newest, places })),
            products: batch.products(),
            last_block: decoder.n_blocks() - 1,
        };
        let (held, products) = (batch.held(), batch.products());
        let inputs = Inputs { ids, positions, rows, held, held_rows: n, products, plan: &plan.before };
        let residual = self.run(decoder, &inputs, &going_on, &arena)?;
        let head = on_device(decoder.head())?;
        let hidden = arena.array(n_rows * width, head.dtype())?;
        device.rms_norm(residual, &self.norm, decoder.norm.eps, hidden)?;
        device.multiply(hidden, head, logits, false, Rows::InTiles)?;
        let fetched = self.chosen(logits, n, wanted, randoms, &arena)?;
        let (pinned, len) = (device.pinned(4 * fetched.len())?, fetched.len());
        device.fetch(fetched, &pinned)?;
        device.synchronize()?;
        Ok(Fetched { pinned, len })
    }

    /// What is wanted of the first `n` rows of the logits. `randoms` are the random numbers of the draws, on the device.
    fn chosen<'a>(&self, logits: Array<'a>, n: usize, wanted: Wanted, randoms: Indices, arena: &Arena<'a>) -> Result<Array<'a>> {
        let (device, vocabulary) = (self.device, self.sizes.vocabulary);
        let largest = || -> Result<Array<'a>> {
            let largest = arena.array(logits.len() / vocabulary, Stored::F32)?;
            device.largest_of_rows(logits, largest, vocabulary)?;
            Ok(largest)
        };
        match wanted {
            Wanted::Logits => logits.part(0, n * vocabulary),
            Wanted::Largest => largest()?.part(0, n),
            Wanted::Drawn { scale, .. } => {
                let largest = largest()?.indices(0, n, vocabulary as u32)?;
                let logits = logits.part(0, n * vocabulary)?;
                let (room, drawn) = (arena.array(n * draw_words(vocabulary), Stored::F32)?, arena.array(n, Stored::F32)?);
                device.draw(logits, largest, randoms, scale, room, drawn, vocabulary)?;
                Ok(drawn)
            }
        }
    }
}

/// The tokens of a step, which see the cached part of their sequences and are added to it.
struct GoingOn<'a> {
    device: &'static Device,
    kept: &'a OnDevice,
    plan: &'a StepPlan,
    lists: StepLists<'a>,
    room: LastRoom<'a>,
    states: Option<(&'a StatesPlan, StatesLists<'a>)>,
    products: Rows,
    last_block: usize,
}

impl<'a> Finds<'a> for GoingOn<'_> {
    fn attend(
        &self,
        block: usize,
        shape: &AttentionShape,
        sinks: Option<&Buffer>,
        qkv: Array<'a>,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let GoingOn { device, kept, plan, lists, room, .. } = self;
        let keys = kept.keys.layer(kept.numbers[block])?;
        device.keep(qkv, plan, shape, lists, keys)?;
        let read = arena.array(qkv.len() / shape.columns() * shape.q_width(), qkv.dtype())?;
        // After the last block only the last tokens are kept.
        if block != self.last_block {
            device.attention(qkv, Some(keys), &plan.before, lists.tiles, lists.ranges, shape, sinks, read)?;
        }
        device.attend_to_last(qkv, keys, plan, lists, shape, sinks, room, read)?;
        Ok(read)
    }

    fn remember(
        &self,
        block: usize,
        vectors: &DeltaVectors,
        net: &DeltaNet,
        normed: Array,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let (Some((plan, lists)), Some(states)) = (&self.states, &self.kept.states) else {
            return Err(Error::new("nothing is kept for the gated delta rule"));
        };
        vectors.mix_onto(self.device, net, (normed, self.products), (plan, lists), (states, self.kept.numbers[block]), arena)
    }
}

/// The most scratch memory that a step of this size takes.
fn step_bytes(sizes: &Sizes, size: &CacheSize) -> usize {
    let &CacheSize { sequences, tokens, positions, .. } = size;
    let rows = StepRows::most(tokens);
    let of_states = sizes.delta.as_ref().map_or(0, |shape| StatesPlan::most_words(rows, sequences, shape));
    let words = StepPlan::most_words(rows, sequences, positions) + of_states;
    bytes_of_a_step(sizes, rows, sequences, words, StepPlan::most_parts(sequences, positions))
}

/// The scratch memory of a step of `rows` rows and `n` sequences, whose lists have `words` words.
fn bytes_of_a_step(sizes: &Sizes, rows: usize, n: usize, words: usize, parts: usize) -> usize {
    let n_rows = n.next_multiple_of(TILE);
    let f32s = |len: usize| arena_bytes(len, Stored::F32);
    let room: usize = LastRoom::lens(parts, &sizes.attention).into_iter().map(f32s).sum();
    // The rows that the delta rule reads back, and those that it stores.
    let recalled = |shape: &DeltaShape| 2 * f32s(StatesPlan::recalled_rows(n, shape) * shape.columns());
    let of_states = sizes.delta.as_ref().map_or(0, recalled);
    let of_draws = f32s(n * draw_words(sizes.vocabulary)) + f32s(2 * n) + f32s(n);
    let chosen = f32s(n_rows * sizes.vocabulary) + f32s(n_rows) + of_draws;
    sizes.batch_bytes(rows, n_rows) + chosen + f32s(words) + room + of_states
}
