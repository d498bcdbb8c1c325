//! The state of the gated delta rule for sequences being generated: per layer and sequence the rule's state, and the last projections, which
//! the convolution still reads.

use std::ops::Range;

use super::array::{Array, Indices};
use super::delta::{DeltaArrays, DeltaPlan, Order, state_bytes};
use super::device::{Arena, Buffer, Device};
use super::step_rows::StepRows;
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::attention::Stretch;
use crate::kernels::delta::DeltaShape;

/// Marks a row before the beginning of the sequence.
const NONE: u32 = u32::MAX;
/// Padding rows per run, so that they are processed in parallel and none delays the step.
const VACANT_ROWS: usize = 8;

/// The states of all layers with the rule, by sequence index.
pub struct KeptStates {
    /// `[layers][sequences, H, V, P]`
    states: Buffer,
    /// `[layers][sequences * (kernel - 1), columns]`, with the newest row last.
    rows: Buffer,
    sequences: usize,
    shape: DeltaShape,
}

impl KeptStates {
    /// Allocates the states of `sequences` sequences in `layers` layers.
    pub fn new(device: &'static Device, shape: &DeltaShape, layers: usize, sequences: usize) -> Result<KeptStates> {
        Ok(KeptStates {
            states: device.allocate(layers * sequences * state_bytes(shape))?,
            rows: device.allocate(layers * sequences * rows_bytes(shape))?,
            sequences,
            shape: *shape,
        })
    }

    /// The bytes that a sequence takes in `layers` layers.
    pub fn sequence_bytes(shape: &DeltaShape, layers: usize) -> usize {
        layers * (state_bytes(shape) + rows_bytes(shape))
    }

    /// The number of sequences that fit.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// The states and rows of a layer.
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

/// The number of earlier tokens that a token's convolution reads.
fn before(shape: &DeltaShape) -> usize {
    shape.kernel.saturating_sub(1)
}

/// The order in which the rule processes a step's tokens, and the rows that are read from and written to the cache.
pub struct StatesPlan {
    /// The number of rows of the batch.
    rows: usize,
    /// The rows that each row's convolution reads, its own last; the rows from the cache follow those of the batch.
    pub steps: Vec<u32>,
    /// The `Run`s of delta.cu: first the tokens before the last of each stretch and the padding rows, then the last tokens.
    pub runs: Vec<u32>,
    /// The ranges of runs of each level; runs depend on earlier levels only.
    levels: Vec<Range<usize>>,
    /// The rows to read from the cache.
    pub recalled: Vec<u32>,
    /// The rows of the batch to write to the cache.
    pub newest: Vec<u32>,
    /// The row of the cache for each of these.
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
    /// Plans a step for stretches whose tokens have the rows `batch`. Returns an error if a sequence occurs twice or does not fit.
    pub fn new(stretches: &[Stretch], batch: &StepRows, shape: &DeltaShape, sequences: usize) -> Result<StatesPlan> {
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
        if batch.n_last() != stretches.len() {
            return Err(Error::new(format!("{} stretches have rows for {}", stretches.len(), batch.n_last())));
        }
        let (rows, before) = (batch.len(), before(shape));
        // A padding row only reads itself.
        let mut steps: Vec<u32> = (0..rows as u32).flat_map(|row| std::iter::repeat_n(NONE, before).chain([row])).collect();
        let (mut recalled, mut newest, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        for (number, stretch) in stretches.iter().enumerate() {
            let (begin, len) = (stretch.position, stretch.tokens.len());
            let kept = rows + recalled.len();
            // The row of a position, counted from `before` positions before the stretch.
            let row = |from_before: usize| -> u32 {
                match from_before.checked_sub(before) {
                    _ if begin + from_before < before => NONE,
                    Some(own) => batch.row(number, own) as u32,
                    None => (kept + from_before) as u32,
                }
            };
            for token in 0..len {
                let reads = &mut steps[batch.row(number, token) * shape.kernel..][..shape.kernel];
                reads.iter_mut().zip(token..).for_each(|(read, from_before)| *read = row(from_before));
            }
            let sequence = stretch.sequence as u32;
            let mut from = if begin == 0 { NONE } else { sequence };
            let before_last = batch.before_last(number);
            if !before_last.is_empty() {
                firsts.push(run(&before_last, std::mem::replace(&mut from, sequence), sequence));
            }
            lasts.push(run(&(number..number + 1), from, sequence));
            let own = (0..before).map(|i| (stretch.sequence * before + i) as u32);
            recalled.extend(own.clone());
            for (place, row) in own.zip((len..len + before).map(row)).filter(|(_, row)| *row != NONE) {
                newest.push(row);
                places.push(place);
            }
        }
        for vacant in batch.vacant() {
            let parts = vacant.clone().step_by(VACANT_ROWS).map(|begin| begin..vacant.end.min(begin + VACANT_ROWS));
            firsts.extend(parts.map(|rows| run(&rows, NONE, NONE)));
        }
        let (n_firsts, n_runs) = (firsts.len(), firsts.len() + lasts.len());
        // If no last token has tokens before it, all runs are independent.
        let is_at_once = batch.before().is_empty();
        let (first, second) = if is_at_once { (0..n_runs, n_runs..n_runs) } else { (0..n_firsts, n_firsts..n_runs) };
        let levels = [first, second].into_iter().filter(|level| !level.is_empty()).collect();
        let runs = firsts.into_iter().chain(lasts).flatten().collect();
        Ok(StatesPlan { rows, steps, runs, levels, recalled, newest, places })
    }

    /// The total number of words in its lists.
    pub fn n_words(&self) -> usize {
        [&self.steps, &self.runs, &self.recalled, &self.newest, &self.places].into_iter().map(Vec::len).sum()
    }

    /// The most words for `rows` rows.
    pub fn most_words(rows: usize, sequences: usize, shape: &DeltaShape) -> usize {
        let runs = 2 * sequences + StepRows::most(0) / VACANT_ROWS + 2;
        rows * shape.kernel + runs * DeltaPlan::RUN_WORDS + 3 * sequences * before(shape)
    }

    /// The rows after those of the batch, for the cached rows of `sequences` sequences.
    pub fn recalled_rows(sequences: usize, shape: &DeltaShape) -> usize {
        sequences * before(shape)
    }
}

/// A `Run` of delta.cu: `rows`, from the state of one sequence to that of another.
fn run(rows: &Range<usize>, from: u32, to: u32) -> [u32; DeltaPlan::RUN_WORDS] {
    [rows.start as u32, rows.len() as u32, 0, rows.start as u32, from, to]
}

impl Device {
    /// Like [`Device::delta`], for sequences that continue. The first rows of `x` are the projections of the step's tokens; it has room after
    /// them for the rows from the cache. Updates the layer's states and rows to the end of the step.
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
        let (shape, columns, tokens) = (&kept.shape, kept.shape.columns(), plan.rows);
        let (states, rows) = kept.layer(layer)?;
        x.expect("projections and kept rows", (tokens + plan.recalled.len()) * columns, Stored::F32)?;
        let lens = [lists.steps.len(), lists.runs.len(), lists.recalled.len(), lists.newest.len(), lists.places.len()];
        if lens != [&plan.steps, &plan.runs, &plan.recalled, &plan.newest, &plan.places].map(Vec::len) {
            return Err(Error::new("the gated delta rule was planned for another step"));
        }
        self.take_rows(rows, lists.recalled, x.part(tokens * columns, plan.recalled.len() * columns)?, columns)?;
        let order = Order { tokens, n_steps: tokens, steps: lists.steps, runs: lists.runs, levels: &plan.levels };
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

    /// The rows of a convolution over three tokens; this test needs no GPU.
    #[test]
    fn a_step_reads_on_behind_what_was_kept() {
        let shape = DeltaShape { key_heads: 1, value_heads: 2, key_dim: 5, value_dim: 3, kernel: 3, grouped: false };
        let stretch = |tokens: Range<usize>, position, sequence| Stretch { tokens, position, pages: Vec::new().into(), sequence };
        let stretches = [stretch(0..3, 0, 1), stretch(3..4, 7, 0), stretch(4..5, 1, 2)];
        let batch = StepRows::new(&stretches).unwrap();
        let plan = StatesPlan::new(&stretches, &batch, &shape, 3).unwrap();
        let (steps, _) = plan.steps.as_chunks::<3>();
        const X: u32 = NONE;
        // The last tokens are rows 0, 1 and 2; the first two tokens of the first stretch, which is new, are rows 64 and 65. Its cached rows
        // are 320 and 321, those of the second stretch 322 and 323, those of the third 324 and 325.
        assert_eq!(steps.len(), 320);
        assert_eq!(steps[..4], [[64, 65, 0], [322, 323, 1], [X, 325, 2], [X, X, 3]]);
        assert_eq!(steps[63..67], [[X, X, 63], [X, X, 64], [X, 64, 65], [X, X, 66]]);
        let (runs, _) = plan.runs.as_chunks::<6>();
        // Then 61 padding rows, and 254.
        assert_eq!(runs.len(), 1 + 8 + 32 + 3);
        assert_eq!(runs[..2], [[64, 2, 0, 64, X, 1], [3, 8, 0, 3, X, X]]);
        assert_eq!(runs[8..10], [[59, 5, 0, 59, X, X], [66, 8, 0, 66, X, X]]);
        assert_eq!(runs[40..], [[314, 6, 0, 314, X, X], [0, 1, 0, 0, 1, 1], [1, 1, 0, 1, 0, 0], [2, 1, 0, 2, 2, 2]]);
        assert_eq!(plan.levels, [0..41, 41..44]);
        assert_eq!(plan.recalled, [2, 3, 0, 1, 4, 5]);
        assert_eq!((plan.newest.as_slice(), plan.places.as_slice()), (&[65, 0, 323, 1, 325, 2][..], &[2, 3, 0, 1, 4, 5][..]));
        assert!(plan.n_words() <= StatesPlan::most_words(320, 3, &shape));
        // Generated tokens have no tokens to wait for.
        let written = [stretch(0..1, 7, 0), stretch(1..2, 3, 1)];
        let plan = StatesPlan::new(&written, &StepRows::new(&written).unwrap(), &shape, 3).unwrap();
        assert_eq!((plan.levels.len(), plan.runs.len()), (1, (8 + 2) * 6));
        for stretches in [vec![stretch(0..1, 0, 3)], vec![stretch(0..1, 0, 1), stretch(1..2, 4, 1)]] {
            assert!(StatesPlan::new(&stretches, &StepRows::new(&stretches).unwrap(), &shape, 3).is_err());
        }
    }
}
