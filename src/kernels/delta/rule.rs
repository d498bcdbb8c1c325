//! The gated delta rule of one value head over one sequence, token by token (Yang et al. 2024, arXiv 2412.06464).
//!
//! The state `S` maps a key to a value; its columns, one per number of the value, are independent:
//!
//! ```text
//! S' = alpha S        error = v - k . S'        S = S' + beta error k        y = q . S
//! ```
//!
//! Backward, given the gradient `D` of the state after a token, to which `q dy` is added:
//!
//! ```text
//! dq += S dy        d = k . D        dk += beta error D - beta d S'        dv = beta d        dbeta += d error
//! D' = D - beta d k        d(ln alpha) += S' . D'        D = alpha D'
//! ```
//!
//! Vectors run along the keys, and a few columns pass through the whole sequence together, so that their states stay in the first-level
//! cache. The backward pass needs the states: it reruns the forward pass, stores a state every [`CHUNK`] tokens and recomputes those in
//! between. Chunks of matrix products, as used on GPUs, would double the work.

use crate::kernels::lanes::Lanes;
use crate::kernels::level::Kernel;

/// The columns that are processed together.
const COLUMNS: usize = 8;
/// The distance between stored states, in tokens.
const CHUNK: usize = 32;
/// Keys are padded with zeros to a multiple of every level's lanes.
pub(super) const PAD: usize = 16;

/// The inputs of one value head for a sequence of `T` tokens.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// `[T, padded key_dim]`
    pub queries: &'a [f32],
    /// `[T, padded key_dim]`
    pub keys: &'a [f32],
    /// `[T, value_dim]`
    pub values: &'a [f32],
    /// `[T]`: the share of the state that is kept.
    pub alpha: &'a [f32],
    /// `[T]`: the share of the error that is learnt.
    pub beta: &'a [f32],
    /// The padded `key_dim`.
    pub width: usize,
    /// The width of a value.
    pub value_dim: usize,
}

/// Updates the states past all tokens.
pub(super) struct Forward<'a> {
    /// The inputs of the rule.
    pub inputs: Inputs<'a>,
    /// `[value_dim, padded key_dim]`
    pub states: &'a mut [f32],
    /// `[T, value_dim]`, entirely overwritten.
    pub outputs: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Forward { inputs, states, outputs } = self;
        let tokens = inputs.check();
        assert!(outputs.len() == tokens * inputs.value_dim && states.len() == inputs.value_dim * inputs.width);
        for (block, states) in states.chunks_mut(COLUMNS * inputs.width).enumerate() {
            let first = block * COLUMNS;
            for token in 0..tokens {
                for (c, state) in states.chunks_exact_mut(inputs.width).enumerate() {
                    // SAFETY: the instructions are there by contract.
                    outputs[token * inputs.value_dim + first + c] = unsafe { inputs.step::<V>(state, token, first + c) };
                }
            }
        }
    }
}

/// The gradients of [`Inputs`], with that of the logarithm of alpha. Those of queries and keys are added to the existing values.
pub(super) struct Gradients<'a> {
    /// `[T, padded key_dim]`
    pub queries: &'a mut [f32],
    /// `[T, padded key_dim]`
    pub keys: &'a mut [f32],
    /// `[T, value_dim]`
    pub values: &'a mut [f32],
    /// `[T]`, with respect to the logarithm of alpha.
    pub log_alpha: &'a mut [f32],
    /// `[T]`
    pub beta: &'a mut [f32],
}

/// Computes the gradients of the rule's inputs, given the gradient of its outputs.
pub(super) struct Backward<'a> {
    /// The inputs of the rule.
    pub inputs: Inputs<'a>,
    /// `[T, value_dim]`
    pub d_outputs: &'a [f32],
    /// The gradients to write.
    pub gradients: Gradients<'a>,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Backward { inputs, d_outputs, mut gradients } = self;
        let tokens = inputs.check();
        let Inputs { width, value_dim, .. } = inputs;
        assert!(d_outputs.len() == tokens * value_dim && gradients.values.len() == d_outputs.len());
        assert!(gradients.queries.len() == inputs.queries.len() && gradients.keys.len() == inputs.keys.len());
        assert!(gradients.log_alpha.len() == tokens && gradients.beta.len() == tokens);
        for first in (0..value_dim).step_by(COLUMNS) {
            let columns = COLUMNS.min(value_dim - first);
            let size = columns * width;
            let mut states = vec![0.0; size];
            let mut kept = Vec::with_capacity(tokens.div_ceil(CHUNK) * size);
            for token in 0..tokens {
                if token.is_multiple_of(CHUNK) {
                    kept.extend_from_slice(&states);
                }
                for (c, state) in states.chunks_exact_mut(width).enumerate() {
                    // SAFETY: the instructions are there by contract.
                    unsafe { inputs.step::<V>(state, token, first + c) };
                }
            }
            let mut d_states = vec![0.0; size];
            let mut before = vec![0.0; CHUNK * size];
            for (chunk, kept) in kept.chunks_exact(size).enumerate().rev() {
                let from = chunk * CHUNK;
                let to = tokens.min(from + CHUNK);
                states.copy_from_slice(kept);
                for token in from..to {
                    before[(token - from) * size..][..size].copy_from_slice(&states);
                    for (c, state) in states.chunks_exact_mut(width).enumerate() {
                        // SAFETY: as above.
                        unsafe { inputs.step::<V>(state, token, first + c) };
                    }
                }
                for token in (from..to).rev() {
                    let before = before[(token - from) * size..][..size].chunks_exact(width);
                    for ((c, before), d_state) in before.enumerate().zip(d_states.chunks_exact_mut(width)) {
                        let dy = d_outputs[token * value_dim + first + c];
                        // SAFETY: as above.
                        unsafe { inputs.step_back::<V>(before, d_state, token, first + c, dy, &mut gradients) };
                    }
                }
            }
        }
    }
}

impl Inputs<'_> {
    /// Panics unless the arrays fit together; returns the number of tokens.
    fn check(&self) -> usize {
        let tokens = self.alpha.len();
        assert!(self.width.is_multiple_of(PAD) && self.beta.len() == tokens && self.values.len() == tokens * self.value_dim);
        assert!(self.queries.len() == tokens * self.width && self.keys.len() == tokens * self.width);
        tokens
    }

    /// Updates one column of the state past a token; returns what the query reads from it.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions.
    #[inline(always)]
    unsafe fn step<V: Lanes>(&self, state: &mut [f32], token: usize, column: usize) -> f32 {
        let width = self.width;
        let (query, key) = (&self.queries[token * width..][..width], &self.keys[token * width..][..width]);
        assert_eq!(state.len(), width);
        // SAFETY: all three are `width` long, a multiple of the lanes.
        unsafe {
            let alpha = V::splat(self.alpha[token]);
            let learnt = V::splat(self.beta[token] * self.error::<V>(state, token, column));
            let mut read = V::splat(0.0);
            for i in (0..width).step_by(V::N) {
                let at = state.as_mut_ptr().add(i);
                let new = V::load(at).mul(alpha).add(V::load(key.as_ptr().add(i)).mul(learnt));
                new.store(at);
                read = V::load(query.as_ptr().add(i)).mul_add(new, read);
            }
            read.sum()
        }
    }

    /// The difference between the value and the one that the state before the token predicts.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions.
    #[inline(always)]
    unsafe fn error<V: Lanes>(&self, state: &[f32], token: usize, column: usize) -> f32 {
        let key = &self.keys[token * self.width..][..self.width];
        assert_eq!(state.len(), self.width);
        // SAFETY: both are `width` long, a multiple of the lanes.
        unsafe {
            let mut expected = V::splat(0.0);
            for i in (0..self.width).step_by(V::N) {
                expected = V::load(key.as_ptr().add(i)).mul_add(V::load(state.as_ptr().add(i)), expected);
            }
            self.values[token * self.value_dim + column] - self.alpha[token] * expected.sum()
        }
    }

    /// Moves the gradient of one column of the state from after a token to before it, and adds to the other gradients.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions.
    #[inline(always)]
    unsafe fn step_back<V: Lanes>(
        &self,
        before: &[f32],
        d_state: &mut [f32],
        token: usize,
        column: usize,
        dy: f32,
        gradients: &mut Gradients,
    ) {
        let width = self.width;
        let row = token * width..(token + 1) * width;
        let (query, key) = (&self.queries[row.clone()], &self.keys[row.clone()]);
        let (d_query, d_key) = (&mut gradients.queries[row.clone()], &mut gradients.keys[row]);
        assert!(before.len() == width && d_state.len() == width);
        let (alpha, beta) = (self.alpha[token], self.beta[token]);
        // SAFETY: all are `width` long, a multiple of the lanes.
        unsafe {
            let error = self.error::<V>(before, token, column);
            let upstream = V::splat(dy);
            let mut sum = V::splat(0.0);
            for i in (0..width).step_by(V::N) {
                let at = d_state.as_mut_ptr().add(i);
                let d = V::load(query.as_ptr().add(i)).mul_add(upstream, V::load(at));
                d.store(at);
                sum = V::load(key.as_ptr().add(i)).mul_add(d, sum);
            }
            let d_learnt = sum.sum();
            let d_value = beta * d_learnt;
            gradients.values[token * self.value_dim + column] = d_value;
            gradients.beta[token] += d_learnt * error;
            let (alphas, learnt, d_values) = (V::splat(alpha), V::splat(beta * error), V::splat(d_value));
            let mut d_log_alpha = V::splat(0.0);
            for i in (0..width).step_by(V::N) {
                let (key, at) = (V::load(key.as_ptr().add(i)), d_state.as_mut_ptr().add(i));
                let (kept, d) = (V::load(before.as_ptr().add(i)).mul(alphas), V::load(at));
                let (d_query, d_key) = (d_query.as_mut_ptr().add(i), d_key.as_mut_ptr().add(i));
                kept.add(key.mul(learnt)).mul_add(upstream, V::load(d_query)).store(d_query);
                V::load(d_key).add(d.mul(learnt)).sub(kept.mul(d_values)).store(d_key);
                let d_kept = d.sub(key.mul(d_values));
                d_log_alpha = kept.mul_add(d_kept, d_log_alpha);
                d_kept.mul(alphas).store(at);
            }
            gradients.log_alpha[token] += d_log_alpha.sum();
        }
    }
}
