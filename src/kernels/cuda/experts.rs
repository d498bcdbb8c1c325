//! Experts on the device: their choice, the grouping of rows by expert, and the sum of their outputs; grouped.rs computes their products.
//!
//! The host does not learn which experts were chosen, and never waits: it knows the number of choices, and the most tiles that they can need.

use super::array::Argument::{F32, U32};
use super::array::{Array, Indices, arena_bytes};
use super::compile::Source;
use super::device::{Arena, Buffer, Device};
use super::operations::{optional, threads_for, whole_rows};
use crate::error::{Error, Result};
use crate::kernels::Stored;

/// `CHOOSING_WARPS`, `LISTING_THREADS`, and the words of a `RowTile` in experts.cu.
const CHOOSING_WARPS: usize = 8;
const LISTING_THREADS: u32 = 256;
const TILE_WORDS: usize = 3;

/// How experts are chosen from the router's logits.
pub struct RouterOptions<'a> {
    /// The number of experts of the layer.
    pub n_experts: usize,
    /// The number of experts of a token.
    pub per_token: usize,
    /// Whether scores are a softmax over all experts rather than sigmoids.
    pub softmax: bool,
    /// Whether the weights of a token's experts are normalised to sum to 1.
    pub normalise: bool,
    /// Multiplies the weights.
    pub scale: f32,
    /// `[E]`, added to the logits.
    pub bias: Option<&'a Buffer>,
    /// `[E]`, added to the scores for the choice only.
    pub correction: Option<&'a Buffer>,
}

/// Which expert computes which rows. Each pair of a token and a chosen expert has a slot; the slots of an expert are contiguous.
pub struct Routing<'a> {
    /// The experts, weights and slots of each token, `[T, K]`.
    pub(super) experts: Indices<'a>,
    pub(super) weights: Array<'a>,
    pub(super) slots: Indices<'a>,
    /// The token of each slot.
    pub(super) tokens: Indices<'a>,
    /// Which slots are computed together.
    pub(super) tiles: Indices<'a>,
    pub(super) rows_of_tile: RowsOfTile,
    pub(super) n_experts: usize,
}

/// The most rows of an expert that are computed together: grouped.cu has two kernels. No bit of a row depends on the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowsOfTile {
    /// For few rows, where reading the weights takes most of the time.
    Few,
    /// For many rows, where each weight that was read should be multiplied with as many rows as possible.
    Many,
}

impl RowsOfTile {
    /// Decides by the average rows per expert: with more than a small tile has, weights would be read twice, which takes as long as a large
    /// tile.
    fn new(choices: usize, n_experts: usize) -> RowsOfTile {
        if choices > RowsOfTile::Few.number() * n_experts { RowsOfTile::Many } else { RowsOfTile::Few }
    }

    pub(super) fn number(self) -> usize {
        match self {
            RowsOfTile::Few => 16,
            RowsOfTile::Many => 128,
        }
    }

    /// The most tiles that `choices` can need: all tiles of an expert are full except one.
    fn most_tiles(self, choices: usize, n_experts: usize) -> usize {
        (choices + (self.number() - 1) * n_experts.min(choices)) / self.number()
    }
}

/// The bytes that [`Device::route`] takes from an arena for `tokens` tokens.
pub fn routing_bytes(tokens: usize, n_experts: usize, per_token: usize) -> usize {
    let words = |len: usize| arena_bytes(len, Stored::F32);
    let choices = tokens * per_token;
    4 * words(choices) + words(TILE_WORDS * RowsOfTile::new(choices, n_experts).most_tiles(choices, n_experts))
}

impl Routing<'_> {
    /// The number of choices of all tokens.
    pub fn n_slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn n_tiles(&self) -> usize {
        self.tiles.len() / TILE_WORDS
    }
}

impl Device {
    /// Chooses experts by the router's `logits [T, E]`, f32. If one of a token's logits is NaN, so is the output of its experts.
    pub fn route<'a>(&'static self, logits: Array, options: &RouterOptions, arena: &Arena<'a>) -> Result<Routing<'a>> {
        let RouterOptions { n_experts, per_token, softmax, normalise, scale, bias, correction } = *options;
        logits.expect("the router's logits", logits.len(), Stored::F32)?;
        let tokens = whole_rows("a router", logits, n_experts)?;
        if per_token == 0 || per_token > n_experts {
            return Err(Error::new(format!("{per_token} of {n_experts} experts cannot be chosen")));
        }
        let n_choices = tokens * per_token;
        let rows_of_tile = RowsOfTile::new(n_choices, n_experts);
        let n_tiles = rows_of_tile.most_tiles(n_choices, n_experts);
        let words = |len: usize, end: usize| arena.array(len, Stored::F32)?.indices(0, len, end as u32);
        let routing = Routing {
            experts: words(n_choices, n_experts)?,
            weights: arena.array(n_choices, Stored::F32)?,
            slots: words(n_choices, n_choices)?,
            tokens: words(n_choices, tokens)?,
            tiles: words(TILE_WORDS * n_tiles, 0)?,
            rows_of_tile,
            n_experts,
        };
        let shared_bytes = CHOOSING_WARPS * 4 * (2 * n_experts + per_token);
        if shared_bytes > self.shared_bytes() {
            return Err(Error::new(format!("{} has no room to choose among {n_experts} experts", self.name()))
                .cure("Leave out --device cuda: the CPU takes its place."));
        }
        let [tokens_word, experts_word, choices, of_token, rows, tiles] =
            [tokens, n_experts, n_choices, per_token, rows_of_tile.number(), n_tiles].map(|number| U32(number as u32));
        let (bias, correction) = (optional(bias, n_experts)?, optional(correction, n_experts)?);
        let arguments = [
            logits.argument(),
            bias,
            correction,
            routing.experts.argument(),
            routing.weights.argument(),
            tokens_word,
            experts_word,
            of_token,
            U32(u32::from(softmax)),
            U32(u32::from(normalise)),
            F32(scale),
        ];
        let kernel = self.kernel(Source::Experts, "choose_experts")?;
        let blocks = (tokens.div_ceil(CHOOSING_WARPS), 1);
        // SAFETY: the logits hold one row per token, experts and weights the choices of each token, bias and correction one number per expert
        // or nothing; each warp has the shared memory that it uses.
        unsafe { self.launch(kernel, blocks, 32 * CHOOSING_WARPS as u32, shared_bytes, &arguments)? };
        let kernel = self.kernel(Source::Experts, "list_tokens")?;
        let (slots, listed) = (routing.slots.argument(), routing.tokens.argument());
        let arguments =
            [routing.experts.argument(), slots, listed, routing.tiles.argument(), choices, experts_word, of_token, rows, tiles];
        // SAFETY: the choices name experts, of which there are as many as blocks; there is a slot for each choice, and room for the most tiles
        // that they can need; a block has one word per expert.
        unsafe { self.launch(kernel, (n_experts, 1), LISTING_THREADS, 4 * n_experts, &arguments)? };
        Ok(routing)
    }

    /// Adds the weighted outputs of the experts, `y [slots, columns]` f32, with their `biases [E, D]`, to the columns `first ..` of the
    /// `residual [T, D]`.
    pub fn add_experts(
        &self,
        y: Array,
        routing: &Routing,
        first: usize,
        biases: Option<&Buffer>,
        residual: Array,
        width: usize,
    ) -> Result<()> {
        let tokens = whole_rows("a sum of experts", residual, width)?;
        residual.expect("what experts are added to", residual.len(), Stored::F32)?;
        if tokens != routing.tokens.end as usize {
            return Err(Error::new("the experts were chosen for other tokens"));
        }
        if tokens == 0 {
            return Ok(());
        }
        let columns = y.len() / routing.n_slots();
        y.expect("what experts give", routing.n_slots() * columns, Stored::F32)?;
        if first + columns > width {
            return Err(Error::new(format!("experts give columns up to {}, of {width}", first + columns)));
        }
        let arguments = [
            y.argument(),
            routing.experts.argument(),
            routing.slots.argument(),
            routing.weights.argument(),
            optional(biases, routing.n_experts * width)?,
            residual.argument(),
            U32(width as u32),
            U32((routing.n_slots() / tokens) as u32),
            U32(first as u32),
            U32(columns as u32),
        ];
        let places = [width as u64, first as u64, columns as u64, y.address / 4, residual.address / 4];
        let by_four = places.into_iter().all(|number| number.is_multiple_of(4));
        let (name, at_a_time) = if by_four { ("add_experts_4", 4) } else { ("add_experts_1", 1) };
        let kernel = self.kernel(Source::Experts, name)?;
        // SAFETY: `y` holds one row per slot, the residual one per token, whose choices name experts with a row of biases; the columns lie
        // within its rows.
        unsafe { self.launch(kernel, (tokens, 1), threads_for(columns / at_a_time), 0, &arguments) }
    }

    /// `residual [T, D] += sigmoid(gates [T]) y [T, D]`, all f32.
    pub fn add_gated(&self, y: Array, gates: Array, residual: Array, width: usize) -> Result<()> {
        let tokens = whole_rows("a gated sum", residual, width)?;
        y.expect("what is added", residual.len(), Stored::F32)?;
        gates.expect("gates of tokens", tokens, Stored::F32)?;
        residual.expect("what is added to", residual.len(), Stored::F32)?;
        let kernel = self.kernel(Source::Experts, "add_gated")?;
        let arguments = [y.argument(), gates.argument(), residual.argument(), U32(width as u32)];
        // SAFETY: all arrays have the same number of rows.
        unsafe { self.launch(kernel, (tokens, 1), threads_for(width), 0, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_choice_falls_into_more_tiles_than_there_is_room_for() {
        for rows in [RowsOfTile::Few, RowsOfTile::Many] {
            let tiles = |counts: &[usize]| counts.iter().map(|count| count.div_ceil(rows.number())).sum::<usize>();
            // An expert needs the most tiles if it has one choice more than full tiles.
            for counts in [&[1; 128][..], &[8, 0, 0], &[17, 1, 129], &[1, 0, 1, 257], &[0; 4], &[16, 128]] {
                let most = rows.most_tiles(counts.iter().sum(), counts.len());
                assert!(tiles(counts) <= most, "{rows:?} {counts:?}: {most}");
            }
            assert_eq!(rows.most_tiles(8, 128), 8, "each with one row");
            assert_eq!(rows.most_tiles(rows.number() + 1 + 1 + 1, 3), 4, "as many as these three");
        }
        assert_eq!(RowsOfTile::new(64 * 8, 128), RowsOfTile::Few);
        assert_eq!(RowsOfTile::new(16_384 * 8, 128), RowsOfTile::Many);
    }
}
