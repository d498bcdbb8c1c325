//! What layers with the gated delta rule remember of sequences that are being written: of each the state, and the last projections that the
//! convolution still reads.

use super::array::{Array, Indices};
use super::delta::{DeltaArrays, DeltaPlan, Order, state_bytes};
use super::device::{Arena, Buffer, Device};
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::attention::Stretch;
use crate::kernels::delta::DeltaShape;

/// Stands for a row that the convolution would read from before the beginning of the sequence.
const NONE: u32 = u32::MAX;

/// What all layers with the rule remember; sequences go by their numbers.
pub struct KeptStates {
    /// `[layers][sequences, H, V, P]`
    states: Buffer,
    /// `[layers][sequences * (kernel - 1), columns]`, the newest last.
    rows: Buffer,
    sequences: usize,
    shape: DeltaShape,
}

impl KeptStates {
    /// Room for `sequences` sequences in `layers` layers.
    pub fn new(device: &'static Device, shape: &DeltaShape, layers: usize, sequences: usize) -> Result<KeptStates> {
        Ok(KeptStates {
            states: device.allocate(layers * sequences * state_bytes(shape))?,
            rows: device.allocate(layers * sequences * rows_bytes(shape))?,
            sequences,
            shape: *shape,
        })
    }

    /// What a sequence takes in so many layers.
    pub fn sequence_bytes(shape: &DeltaShape, layers: usize) -> usize {
        layers * (state_bytes(shape) + rows_bytes(shape))
    }

    /// How many sequences there is room for.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// States and rows of a layer.
    fn layer(&self, index: usize) -> Result<(Array<'_>, Array<'_>)> {
        let of = |buffer: &'_ Buffer, bytes: usize| -> Result<(usize, usize)> {
            let bytes = self.sequences * bytes;
            if (index + 1) * bytes > buffer.bytes() {
                return Err(Error::new(format!("the states of layer {index} are not kept")));
            }
            Ok((index * bytes, bytes / 4))
        };
        let (states, rows) = (of(&self.states, state_bytes(&self.shape))?, of(&self.rows, rows_bytes(&self.shape))?);
        Ok((self.states.array(states.0, states.1, Stored::F32)?, self.rows.array(rows.0, rows.1, Stored::F32)?))
    }
}

fn rows_bytes(shape: &DeltaShape) -> usize {
    4 * before(shape) * shape.columns()
}

/// Tokens before its own that a token's convolution reads.
fn before(shape: &DeltaShape) -> usize {
    shape.kernel.saturating_sub(1)
}

/// In which order the tokens of a step go through the rule, and what is fetched for them and kept of them.
pub struct StatesPlan {
    tokens: usize,
    n_runs: usize,
    /// The rows that each token's convolution reads, its own last; behind the batch's rows stand those that were kept.
    pub steps: Vec<u32>,
    /// `Run` of delta.cu: the stretches, and the rows without a token as one more.
    pub runs: Vec<u32>,
    /// Kept rows that are fetched.
    pub recalled: Vec<u32>,
    /// Rows of the batch that are kept.
    pub newest: Vec<u32>,
    /// Where each of them is kept.
    pub places: Vec<u32>,
}

/// A plan's lists on the device.
pub struct StatesLists<'a> {
    /// [`StatesPlan::steps`].
    pub steps: Indices<'a>,
    /// [`StatesPlan::runs`].
    pub runs: Indices<'a>,
    /// [`StatesPlan::recalled`].
    pub recalled: Indices<'a>,
    /// [`StatesPlan::newest`].
    pub newest: Indices<'a>,
    /// [`StatesPlan::places`].
    pub places: Indices<'a>,
}

impl StatesPlan {
    /// Plans a step for stretches that tile the first rows of a batch of `tokens`. An error where a sequence stands twice, or there is
    /// no room
    /// for it.
    pub fn new(stretches: &[Stretch], tokens: usize, shape: &DeltaShape, sequences: usize) -> Result<StatesPlan> {
        let mut seen = vec![false; sequences];
        for stretch in stretches {
            let is_new = seen.get_mut(stretch.sequence).is_some_and(|seen| !std::mem::replace(seen, true));
            if !is_new {
                return Err(Error::new(format!(
                    "sequence {} stands twice in a step, or is none of {sequences}",
                    stretch.sequence
                )));
            }
        }
        let (before, empty) = (before(shape), Vec::new);
        let mut plan =
            StatesPlan { tokens, n_runs: 0, steps: empty(), runs: empty(), recalled: empty(), newest: empty(), places: empty() };
        let mut held = 0;
        for stretch in stretches {
            let (begin, len) = (stretch.position, stretch.tokens.len());
            let kept = tokens + plan.recalled.len();
            // The row of a position, counted from `before` positions before the stretch on.
            let row = |from_before: usize| -> u32 {
                match from_before.checked_sub(before) {
                    _ if begin + from_before < before => NONE,
                    Some(own) => (stretch.tokens.start + own) as u32,
                    None => (kept + from_before) as u32,
                }
            };
            plan.steps.extend((0..len).flat_map(|token| (token..=token + before).map(row)));
            let number = stretch.sequence as u32;
            let from = if begin == 0 { NONE } else { number };
            plan.add_run(held, len, from, number);
            let places = (0..before).map(|i| (stretch.sequence * before + i) as u32);
            plan.recalled.extend(places.clone());
            for (place, newest) in places.zip((len..len + before).map(row)).filter(|(_, row)| *row != NONE) {
                plan.newest.push(newest);
                plan.places.push(place);
            }
            held += len;
        }
        if held > tokens {
            return Err(Error::new(format!("stretches of {held} tokens in a batch of {tokens}")));
        }
        for token in held..tokens {
            plan.steps.extend(std::iter::repeat_n(NONE, before).chain([token as u32]));
        }
        if held < tokens {
            plan.add_run(held, tokens - held, NONE, NONE);
        }
        Ok(plan)
    }

    fn add_run(&mut self, first: usize, len: usize, from: u32, to: u32) {
        self.runs.extend([first as u32, len as u32, 0, first as u32, from, to]);
        self.n_runs += 1;
    }

    /// Words of its lists.
    pub fn n_words(&self) -> usize {
        [&self.steps, &self.runs, &self.recalled, &self.newest, &self.places].into_iter().map(Vec::len).sum()
    }

    /// The most of these.
    pub fn most_words(tokens: usize, sequences: usize, shape: &DeltaShape) -> usize {
        tokens * shape.kernel + (sequences + 1) * DeltaPlan::RUN_WORDS + 3 * sequences * before(shape)
    }

    /// Rows behind those of the batch, for what was kept of so many sequences.
    pub fn recalled_rows(sequences: usize, shape: &DeltaShape) -> usize {
        sequences * before(shape)
    }
}

impl Device {
    /// [`Device::delta`] for sequences that go on: `x` has the projections of the step's tokens in its first rows, and room for the rows that
    /// are recalled behind them. States and rows of the layer are those of the step's end afterwards.
    #[expect(clippy::too_many_arguments, reason = "the parts of one operation, named where it is called")]
    pub fn delta_onto<'a>(
        &self,
        x: Array,
        learnt: &DeltaArrays,
        plan: &StatesPlan,
        lists: &StatesLists,
        kept: &KeptStates,
        layer: usize,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let (shape, columns, tokens) = (&kept.shape, kept.shape.columns(), plan.tokens);
        let (states, rows) = kept.layer(layer)?;
        x.expect("projections and kept rows", (tokens + plan.recalled.len()) * columns, Stored::F32)?;
        let lens = [lists.steps.len(), lists.runs.len(), lists.recalled.len(), lists.newest.len(), lists.places.len()];
        if lens != [&plan.steps, &plan.runs, &plan.recalled, &plan.newest, &plan.places].map(Vec::len) {
            return Err(Error::new("the gated delta rule was planned for another step"));
        }
        self.take_rows(rows, lists.recalled, x.part(tokens * columns, plan.recalled.len() * columns)?, columns)?;
        let level = 0..plan.n_runs;
        let levels = std::slice::from_ref(&level);
        let order = Order { tokens, n_steps: tokens, steps: lists.steps, runs: lists.runs, levels };
        let y = self.delta_in(x, learnt, &order, states, shape, arena)?;
        let newest = arena.array(plan.newest.len() * columns, Stored::F32)?;
        self.take_rows(x, lists.newest, newest, columns)?;
        self.put_rows(newest, columns, 0, lists.places, rows, columns)?;
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    /// Rows of a convolution over three tokens; this needs no GPU.
    #[test]
    fn a_step_reads_on_behind_what_was_kept() {
        let shape = DeltaShape { key_heads: 1, value_heads: 2, key_dim: 5, value_dim: 3, kernel: 3, grouped: false };
        let stretch = |tokens: Range<usize>, position, sequence| Stretch { tokens, position, pages: Vec::new().into(), sequence };
        let plan = StatesPlan::new(&[stretch(0..3, 0, 1), stretch(3..4, 7, 0), stretch(4..5, 1, 2)], 7, &shape, 3).unwrap();
        let (steps, _) = plan.steps.as_chunks::<3>();
        const X: u32 = NONE;
        // Rows 7 and 8 are kept of the first stretch, which is new; 9 and 10 of the second, 11 and 12 of the third.
        assert_eq!(steps, [[X, X, 0], [X, 0, 1], [0, 1, 2], [9, 10, 3], [X, 12, 4], [X, X, 5], [X, X, 6]]);
        let (runs, _) = plan.runs.as_chunks::<6>();
        assert_eq!(runs, [[0, 3, 0, 0, X, 1], [3, 1, 0, 3, 0, 0], [4, 1, 0, 4, 2, 2], [5, 2, 0, 5, X, X]]);
        assert_eq!(plan.recalled, [2, 3, 0, 1, 4, 5]);
        assert_eq!((plan.newest, plan.places), (vec![1, 2, 10, 3, 12, 4], vec![2, 3, 0, 1, 4, 5]));
        for stretches in [vec![stretch(0..1, 0, 3)], vec![stretch(0..1, 0, 1), stretch(1..2, 4, 1)]] {
            assert!(StatesPlan::new(&stretches, 7, &shape, 3).is_err());
        }
    }
}
