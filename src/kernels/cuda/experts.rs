//! Experts on the device: the choice, the rows of each expert side by side, the sums of what they give.
//!
//! The host learns of each layer how many tokens chose which expert, as it has to ask for products of so many rows; all else stays on the
//! device. An expert's rows begin at a multiple of [`PADDING`] among all, and it multiplies a multiple of it, so that cuBLASLt is asked for
//! few different products: the rows that fill up are copies of the first token's, which nobody reads.

use std::ops::Range;

use super::array::Argument::{F32, U32};
use super::array::{Array, Indices, arena_bytes};
use super::compile::Source;
use super::device::{Arena, Buffer, Device};
use super::operations::{optional, threads_for, whole_rows};
use super::shape::TILE;
use crate::error::{Error, Result};
use crate::kernels::Stored;

/// Slots of an expert begin at a multiple of this, and are filled up to one; products in tiles want whole ones.
const PADDING: usize = TILE;
/// experts.cu: `CHOOSING_WARPS`, `LISTING_THREADS`.
const CHOOSING_WARPS: usize = 8;
const LISTING_THREADS: u32 = 256;

/// How experts are chosen from the router's logits.
pub struct RouterOptions<'a> {
    /// Experts of the layer.
    pub n_experts: usize,
    /// Experts of a token.
    pub per_token: usize,
    /// Scores are shares of all experts; else each has its sigmoid.
    pub softmax: bool,
    /// The weights of a token's experts are made to sum to 1.
    pub normalise: bool,
    /// Multiplies the weights.
    pub scale: f32,
    /// `[E]`, added to the logits.
    pub bias: Option<&'a Buffer>,
    /// `[E]`, added to the scores, to choose alone.
    pub correction: Option<&'a Buffer>,
}

/// Who computes what: of each token its experts, its weights and the slots where they stand among the rows of all experts, `[T, K]`; of each
/// slot its token.
pub struct Routing<'a> {
    experts: Indices<'a>,
    weights: Array<'a>,
    slots: Indices<'a>,
    tokens: Indices<'a>,
    /// The slots of each expert, filled up.
    of_experts: Vec<Range<usize>>,
}

/// Experts that are computed together, and their slots.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    /// The numbers of the experts.
    pub experts: Range<usize>,
    /// Their slots, which lie side by side.
    pub slots: Range<usize>,
}

/// Bytes of an arena that [`Device::route`] takes for `tokens` tokens.
pub fn routing_bytes(tokens: usize, n_experts: usize, per_token: usize) -> usize {
    let words = |len: usize| arena_bytes(len, Stored::F32);
    3 * words(tokens * per_token) + words(most_slots(tokens, n_experts, per_token)) + words(n_experts + 1)
}

/// The most rows that an expert multiplies.
pub fn most_rows(tokens: usize) -> usize {
    tokens.next_multiple_of(PADDING)
}

fn most_slots(tokens: usize, n_experts: usize, per_token: usize) -> usize {
    tokens * per_token + (PADDING - 1) * n_experts
}

impl Routing<'_> {
    /// The slots of an expert.
    pub fn slots(&self, expert: usize) -> Range<usize> {
        self.of_experts[expert].clone()
    }

    /// All experts with tokens, in groups of at most `rows` slots, or of one expert.
    pub fn groups(&self, rows: usize) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (expert, slots) in self.of_experts.iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
            match groups.last_mut() {
                Some(group) if slots.end - group.slots.start <= rows => {
                    (group.experts.end, group.slots.end) = (expert + 1, slots.end);
                }
                _ => groups.push(Group { experts: expert..expert + 1, slots: slots.clone() }),
            }
        }
        groups
    }
}

impl Device {
    /// Chooses experts by the router's `logits [T, E]`, f32, and waits until it is known how many tokens chose which.
    pub fn route<'a>(&'static self, logits: Array, options: &RouterOptions, arena: &Arena<'a>) -> Result<Routing<'a>> {
        let RouterOptions { n_experts, per_token, softmax, normalise, scale, bias, correction } = *options;
        logits.expect("the router's logits", logits.len(), Stored::F32)?;
        let tokens = whole_rows("a router", logits, n_experts)?;
        if per_token == 0 || per_token > n_experts {
            return Err(Error::new(format!("{per_token} of {n_experts} experts cannot be chosen")));
        }
        let n_choices = tokens * per_token;
        let words = |len: usize, end: usize| arena.array(len, Stored::F32)?.indices(0, len, end as u32);
        let n_slots = most_slots(tokens, n_experts, per_token);
        let routing = Routing {
            experts: words(n_choices, n_experts)?,
            weights: arena.array(n_choices, Stored::F32)?,
            slots: words(n_choices, n_slots)?,
            tokens: words(n_slots, tokens)?,
            of_experts: Vec::new(),
        };
        let counts = arena.array(n_experts + 1, Stored::F32)?;
        let shared_bytes = CHOOSING_WARPS * 4 * (2 * n_experts + per_token);
        if shared_bytes > self.shared_bytes() {
            return Err(Error::new(format!("{} has no room to choose among {n_experts} experts", self.name()))
                .cure("Leave out --device cuda: the CPU takes its place."));
        }
        let [tokens_word, experts_word, choices, of_token] =
            [tokens, n_experts, n_choices, per_token].map(|number| U32(number as u32));
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
        // SAFETY: the logits hold a row for each token, experts and weights the choices of each, bias and correction a number for each
        // expert or nothing; a warp has the shared memory that it works in.
        unsafe { self.launch(kernel, blocks, 32 * CHOOSING_WARPS as u32, shared_bytes, &arguments)? };
        let kernel = self.kernel(Source::Experts, "count_experts")?;
        // SAFETY: there is a count for each expert and one more, and a block for each of these.
        unsafe {
            let arguments = [routing.experts.argument(), counts.argument(), choices];
            self.launch(kernel, (n_experts + 1, 1), LISTING_THREADS, 0, &arguments)?;
        }
        let kernel = self.kernel(Source::Experts, "list_tokens")?;
        let (slots, listed) = (routing.slots.argument(), routing.tokens.argument());
        // SAFETY: all slots have a place: the experts' tokens are the choices, and each expert fills up less than `PADDING`.
        unsafe {
            let arguments =
                [routing.experts.argument(), counts.argument(), slots, listed, choices, of_token, U32(PADDING as u32)];
            self.launch(kernel, (n_experts, 1), LISTING_THREADS, 0, &arguments)?;
        }
        let counts: Vec<usize> = self.download(counts)?.iter().map(|count| count.to_bits() as usize).collect();
        let (counts, damaged) = counts.split_at(n_experts);
        if damaged != [0] {
            return Err(Error::new("the router's probabilities are not numbers")
                .cure("The weights are damaged, or overflow: check the model file."));
        }
        let mut end = 0;
        let of_expert = |&count: &usize| {
            end += count.next_multiple_of(PADDING);
            end - count.next_multiple_of(PADDING)..end
        };
        Ok(Routing { of_experts: counts.iter().map(of_expert).collect(), ..routing })
    }

    /// `y [slots, D]`: the rows of `x [T, D]` of a group's slots.
    pub fn take_tokens(&self, x: Array, routing: &Routing, slots: &Range<usize>, y: Array, width: usize) -> Result<()> {
        self.take_rows(x, routing.tokens.part(slots.start, slots.len())?, y, width)
    }

    /// Adds to the `residual [T, D]` what the experts of a group gave, `y [slots, D]` f32, and their `biases [E, D]`, each times its weight.
    pub fn add_experts(
        &self,
        y: Array,
        routing: &Routing,
        slots: &Range<usize>,
        biases: Option<&Buffer>,
        residual: Array,
        width: usize,
    ) -> Result<()> {
        let tokens = whole_rows("a sum of experts", residual, width)?;
        y.expect("what experts give", slots.len() * width, Stored::F32)?;
        residual.expect("what experts are added to", residual.len(), Stored::F32)?;
        if tokens == 0 {
            return Ok(());
        }
        let per_token = routing.slots.len() / tokens;
        if routing.slots.len() != tokens * per_token {
            return Err(Error::new("the experts were chosen for other tokens"));
        }
        let arguments = [
            y.argument(),
            routing.experts.argument(),
            routing.slots.argument(),
            routing.weights.argument(),
            optional(biases, routing.of_experts.len() * width)?,
            residual.argument(),
            U32(width as u32),
            U32(per_token as u32),
            U32(slots.start as u32),
            U32(slots.end as u32),
        ];
        let by_four = [width as u64, y.address / 4, residual.address / 4].into_iter().all(|number| number.is_multiple_of(4));
        let (name, at_a_time) = if by_four { ("add_experts_4", 4) } else { ("add_experts_1", 1) };
        let kernel = self.kernel(Source::Experts, name)?;
        // SAFETY: `y` holds a row for each of the slots, the residual one for each token, whose choices name experts with a row of biases.
        unsafe { self.launch(kernel, (tokens, 1), threads_for(width / at_a_time), 0, &arguments) }
    }

    /// `residual [T, D] += sigmoid(gates [T]) y [T, D]`, all f32.
    pub fn add_gated(&self, y: Array, gates: Array, residual: Array, width: usize) -> Result<()> {
        let tokens = whole_rows("a gated sum", residual, width)?;
        y.expect("what is added", residual.len(), Stored::F32)?;
        gates.expect("gates of tokens", tokens, Stored::F32)?;
        residual.expect("what is added to", residual.len(), Stored::F32)?;
        let kernel = self.kernel(Source::Experts, "add_gated")?;
        let arguments = [y.argument(), gates.argument(), residual.argument(), U32(width as u32)];
        // SAFETY: all hold as many rows.
        unsafe { self.launch(kernel, (tokens, 1), threads_for(width), 0, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;

    #[test]
    fn groups_hold_so_many_slots_or_one_expert() {
        let nothing = Array { address: 0, len: 0, dtype: Stored::F32, memory: PhantomData };
        let none = nothing.indices(0, 0, 0).unwrap();
        let of_experts = vec![0..64, 64..64, 64..192, 192..256, 256..256, 256..640, 640..704];
        let routing = Routing { experts: none, weights: nothing, slots: none, tokens: none, of_experts };
        let group = |experts, slots| Group { experts, slots };
        assert_eq!(routing.groups(256), [group(0..4, 0..256), group(5..6, 256..640), group(6..7, 640..704)]);
        assert_eq!(
            routing.groups(100),
            [group(0..1, 0..64), group(2..3, 64..192), group(3..4, 192..256), group(5..6, 256..640), group(6..7, 640..704)]
        );
    }
}
