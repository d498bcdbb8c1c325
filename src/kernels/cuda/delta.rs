//! The gated delta rule on the device: the order in which it processes a batch's tokens, and the launches of delta.cu.

use std::ops::Range;

use super::array::Argument::{F32, U32};
use super::array::{Argument, Array, Indices, arena_bytes};
use super::compile::Source;
use super::device::{Arena, Buffer, Device};
use super::operations::{optional, whole_rows};
use crate::error::{Error, Result};
use crate::kernels::delta::plan::{Run, trees};
use crate::kernels::delta::weights::DeltaNumbers;
use crate::kernels::delta::{DeltaShape, DeltaWeights};
use crate::kernels::{Segment, Stored};

/// `NONE` and `RULE_THREADS` in delta.cu.
const NONE: u32 = u32::MAX;
const RULE_THREADS: usize = 128;
const RUN_WORDS: usize = DeltaPlan::RUN_WORDS;
/// The memory for the states after shared prefixes; prefixes whose states do not fit are computed again.
const STATE_BYTES: usize = 128 << 20;

/// The order in which the rule processes tokens: consecutive steps form runs, and runs may continue from the states of others.
pub struct DeltaPlan {
    tokens: usize,
    n_states: usize,
    /// The rows that the convolution reads at each step, with the step's own row last: `[S, kernel]`.
    pub steps: Vec<u32>,
    /// The `Run`s of delta.cu, level by level.
    pub runs: Vec<u32>,
    /// The ranges of runs of each level; runs depend on earlier levels only.
    levels: Vec<Range<usize>>,
}

/// The trained parameters on the device.
pub struct DeltaArrays {
    /// `[channels, kernel]`
    pub convolution: Buffer,
    /// `[H]`: `exp(A_log)`.
    pub rates: Buffer,
    /// `[H]`, added to `a`.
    pub dt_bias: Buffer,
}

impl DeltaArrays {
    /// Uploads the parameters.
    pub fn new(device: &'static Device, weights: &DeltaWeights, shape: &DeltaShape) -> Result<DeltaArrays> {
        let DeltaNumbers { convolution, a_log, dt_bias } = DeltaNumbers::new(weights, *shape)?;
        let rates: Vec<f32> = a_log.into_iter().map(f32::exp).collect();
        let upload = |numbers: &[f32]| device.upload(numbers, Stored::F32);
        Ok(DeltaArrays { convolution: upload(&convolution)?, rates: upload(&rates)?, dt_bias: upload(&dt_bias)? })
    }
}

impl DeltaPlan {
    /// The words of a `Run` in delta.cu.
    pub const RUN_WORDS: usize = 6;

    /// Plans the order for `segments` with `tokens` tokens, which [`positions`](crate::kernels::attention::positions) has checked.
    pub fn new(segments: &[Segment], tokens: usize, shape: &DeltaShape) -> DeltaPlan {
        DeltaPlan::bounded(segments, tokens, shape.kernel, STATE_BYTES / state_bytes(shape))
    }

    /// A plan that stores at most `most_states` states.
    fn bounded(segments: &[Segment], tokens: usize, kernel: usize, most_states: usize) -> DeltaPlan {
        let mut plan = DeltaPlan { tokens, n_states: 0, steps: Vec::new(), runs: Vec::new(), levels: Vec::new() };
        let mut by_level: Vec<Vec<[u32; RUN_WORDS]>> = Vec::new();
        for tree in trees(segments, kernel, most_states) {
            // For each run of the tree its level, and the index of the state that it stores for others, if any.
            let mut placed: Vec<(usize, u32)> = Vec::with_capacity(tree.len());
            for run in &tree {
                let (level, from) = run.parent.map_or((0, NONE), |parent| (placed[parent].0 + 1, placed[parent].1));
                let to = if run.heirs > 0 { plan.n_states as u32 } else { NONE };
                plan.n_states += usize::from(run.heirs > 0);
                let first = plan.n_steps(kernel) as u32;
                plan.add_steps(run, kernel);
                if by_level.len() <= level {
                    by_level.push(Vec::new());
                }
                let row = run.rows.get(run.again).map_or(0, |&row| row as u32);
                by_level[level].push([first, run.rows.len() as u32, run.again as u32, row, from, to]);
                placed.push((level, to));
            }
        }
        let mut begin = 0;
        for mut level in by_level {
            // Longest first, so that no long run is left over at the end.
            level.sort_by_key(|run| std::cmp::Reverse(run[1]));
            plan.levels.push(begin..begin + level.len());
            begin += level.len();
            plan.runs.extend(level.into_iter().flatten());
        }
        plan
    }

    fn add_steps(&mut self, run: &Run, kernel: usize) {
        let rows: Vec<usize> = run.before.iter().chain(&run.rows).copied().collect();
        for newest in run.before.len()..rows.len() {
            let missing = kernel.saturating_sub(newest + 1);
            self.steps.extend(std::iter::repeat_n(NONE, missing));
            self.steps.extend(rows[(newest + 1).saturating_sub(kernel)..=newest].iter().map(|&row| row as u32));
        }
    }

    /// The number of tokens to process; some may be processed more than once.
    pub fn n_steps(&self, kernel: usize) -> usize {
        self.steps.len() / kernel.max(1)
    }

    /// The bytes that [`Device::delta`] takes from an arena for this batch.
    pub fn room(&self, shape: &DeltaShape) -> usize {
        room(self.n_steps(shape.kernel), self.tokens, self.n_states, shape)
    }

    /// The most bytes for `tokens` tokens, each processed once.
    pub fn most_room(tokens: usize, shape: &DeltaShape) -> usize {
        room(tokens, tokens, (STATE_BYTES / state_bytes(shape)).min(tokens), shape)
    }
}

fn room(steps: usize, tokens: usize, n_states: usize, shape: &DeltaShape) -> usize {
    let DeltaShape { key_heads, value_heads, .. } = *shape;
    let f32s = |len: usize| arena_bytes(len, Stored::F32);
    let prepared =
        2 * f32s(steps * key_heads * padded(shape.key_dim)) + f32s(steps * shape.width()) + 2 * f32s(steps * value_heads);
    prepared + f32s(n_states * state_bytes(shape) / 4) + f32s(tokens * shape.width())
}

pub(super) fn state_bytes(shape: &DeltaShape) -> usize {
    4 * shape.width() * padded(shape.key_dim)
}

/// `PARTS` in delta.cu.
fn parts(key_dim: usize) -> usize {
    if key_dim > 128 { 8 } else { 4 }
}

/// `PADDED_KEYS` in delta.cu.
fn padded(key_dim: usize) -> usize {
    key_dim.next_multiple_of(4 * parts(key_dim))
}

/// The steps of the rule, on the device.
pub(super) struct Order<'a> {
    /// The rows of the output.
    pub tokens: usize,
    /// The number of steps.
    pub n_steps: usize,
    /// The rows that the convolution reads at each step, `[S, kernel]`.
    pub steps: Indices<'a>,
    /// The `Run`s of delta.cu, level by level.
    pub runs: Indices<'a>,
    /// The ranges of runs of each level; runs depend on earlier levels only.
    pub levels: &'a [Range<usize>],
}

impl Device {
    /// The output of the rule, `[T, H, V]` f32, for the projections `x [T, columns]` f32. `steps` and `runs` are those of the plan, on
    /// the device.
    #[expect(clippy::too_many_arguments, reason = "the parts of one operation, named where it is called")]
    pub fn delta<'a>(
        &self,
        x: Array,
        learnt: &DeltaArrays,
        plan: &DeltaPlan,
        steps: Indices,
        runs: Indices,
        shape: &DeltaShape,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        x.expect("projections for the gated delta rule", plan.tokens * shape.columns(), Stored::F32)?;
        if (steps.len(), runs.len()) != (plan.steps.len(), plan.runs.len()) {
            return Err(Error::new("the gated delta rule was planned for another batch"));
        }
        let states = arena.array(plan.n_states * state_bytes(shape) / 4, Stored::F32)?;
        let order = Order { tokens: plan.tokens, n_steps: plan.n_steps(shape.kernel), steps, runs, levels: &plan.levels };
        self.delta_in(x, learnt, &order, states, shape, arena)
    }

    /// Like [`Device::delta`], in a given order, reading and writing `states`. The rows and states that the order names must exist.
    pub(super) fn delta_in<'a>(
        &self,
        x: Array,
        learnt: &DeltaArrays,
        order: &Order,
        states: Array,
        shape: &DeltaShape,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let DeltaShape { key_heads, value_heads, value_dim, kernel, grouped, .. } = *shape;
        let Order { tokens, n_steps, steps, runs, levels } = *order;
        let source = source(shape)?;
        let f32s = |len: usize| arena.array(len, Stored::F32);
        let [queries, keys] =
            [f32s(n_steps * key_heads * padded(shape.key_dim))?, f32s(n_steps * key_heads * padded(shape.key_dim))?];
        let values = f32s(n_steps * shape.width())?;
        let [alphas, betas] = [f32s(n_steps * value_heads)?, f32s(n_steps * value_heads)?];
        let y = f32s(tokens * shape.width())?;

        let [key_heads, value_heads_word, value_dim_word] = [key_heads, value_heads, value_dim].map(|number| U32(number as u32));
        let arguments = [
            x.argument(),
            steps.argument(),
            optional(Some(&learnt.convolution), shape.channels() * kernel)?,
            optional(Some(&learnt.rates), value_heads)?,
            optional(Some(&learnt.dt_bias), value_heads)?,
            queries.argument(),
            keys.argument(),
            values.argument(),
            alphas.argument(),
            betas.argument(),
            key_heads,
            value_heads_word,
            value_dim_word,
            U32(u32::from(grouped)),
            U32(kernel as u32),
        ];
        let prepare = self.kernel(source, "delta_prepare")?;
        // SAFETY: the order's rows lie within those of `x`, as its maker checked; all other arrays have the required length.
        unsafe { self.launch(prepare, (n_steps, 1), 256, 0, &arguments)? };
        let rule = self.kernel(source, "delta_rule")?;
        let blocks = value_dim.div_ceil(RULE_THREADS / parts(shape.key_dim));
        for level in levels {
            let of_level = runs.part(level.start * RUN_WORDS, level.len() * RUN_WORDS)?;
            let inputs = [queries, keys, values, alphas, betas].map(|array| array.argument());
            let rest = [of_level.argument(), states.argument(), y.argument(), key_heads, value_heads_word, value_dim_word];
            let arguments: Vec<Argument> = inputs.into_iter().chain(rest).collect();
            // SAFETY: as above; a run that continues from a state comes after the one that stores it.
            unsafe { self.launch(rule, (level.len() * value_heads, blocks), RULE_THREADS as u32, 0, &arguments)? };
        }
        Ok(y)
    }

    /// `y [T, H, V] = silu(gates) * rms_norm(given) * weight`, with the gates of the projections `x`; `given` is f32.
    pub fn delta_open(&self, x: Array, given: Array, weight: &Buffer, eps: f64, shape: &DeltaShape, y: Array) -> Result<()> {
        let DeltaShape { key_heads, value_heads, value_dim, grouped, .. } = *shape;
        let tokens = whole_rows("the gated delta rule", y, shape.width())?;
        x.expect("projections for the gated delta rule", tokens * shape.columns(), Stored::F32)?;
        given.expect("what the gated delta rule gives", y.len(), Stored::F32)?;
        let name = if y.dtype() == Stored::F32 { "delta_open_f32" } else { "delta_open_bf16" };
        let kernel = self.kernel(source(shape)?, name)?;
        let n_heads = tokens * value_heads;
        let [heads_word, key_heads, value_heads, value_dim_word] =
            [n_heads, key_heads, value_heads, value_dim].map(|number| U32(number as u32));
        let arguments = [
            x.argument(),
            given.argument(),
            optional(Some(weight), value_dim)?,
            y.argument(),
            heads_word,
            key_heads,
            value_heads,
            value_dim_word,
            U32(u32::from(grouped)),
            F32(eps as f32),
        ];
        // SAFETY: each array holds one row per token, of the widths that were checked.
        unsafe { self.launch(kernel, (n_heads.div_ceil(8), 1), 256, 0, &arguments) }
    }
}

fn source(shape: &DeltaShape) -> Result<Source> {
    shape.check(shape.columns())?;
    match shape.key_dim {
        key_dim @ 1..=256 => Ok(Source::Delta { key_dim: key_dim as u32 }),
        wide => Err(Error::new(format!("the GPU's gated delta rule takes keys of up to 256 elements, not {wide}"))
            .cure("Leave out --device cuda: the CPU takes its place.")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "a context is a list of ranges")]

    use super::*;

    /// Every token belongs to exactly one run, after the tokens that it sees, whether or not there is room for states.
    #[test]
    fn a_plan_takes_every_token_past_all_that_it_sees() {
        let segment = |tokens, context: &[Range<usize>]| Segment { tokens, context: context.to_vec() };
        let segments = [
            segment(0..5, &[]),
            segment(5..7, &[0..5]),
            segment(7..8, &[0..5, 5..7]),
            segment(8..9, &[]),
            segment(9..12, &[0..5]),
            segment(12..13, &[0..4]),
        ];
        let mut expected: Vec<Vec<u32>> = Vec::new();
        for segment in &segments {
            let mut seen: Vec<u32> = segment.context.iter().flat_map(|range| range.clone()).map(|row| row as u32).collect();
            for row in segment.tokens.clone() {
                seen.push(row as u32);
                expected.push(seen.clone());
            }
        }
        for most_states in [0, 1, 100] {
            let plan = DeltaPlan::bounded(&segments, 13, 3, most_states);
            assert!(plan.n_states <= most_states);
            let (runs, _) = plan.runs.as_chunks::<RUN_WORDS>();
            let mut states: Vec<Vec<u32>> = vec![Vec::new(); plan.n_states];
            let mut found: Vec<Vec<u32>> = vec![Vec::new(); 13];
            for &[first, steps, again, row, from, to] in runs {
                let mut seen = if from == NONE { Vec::new() } else { states[from as usize].clone() };
                for i in 0..steps {
                    let reads = &plan.steps[3 * (first + i) as usize..][..3];
                    seen.push(reads[2]);
                    let last = [vec![NONE; 3], seen.clone()].concat();
                    assert_eq!(reads, &last[last.len() - 3..]);
                    if i >= again {
                        assert!(std::mem::replace(&mut found[(row + i - again) as usize], seen.clone()).is_empty());
                    }
                }
                if to != NONE {
                    states[to as usize] = seen;
                }
            }
            assert_eq!(found, expected, "{most_states} states");
        }
    }
}
