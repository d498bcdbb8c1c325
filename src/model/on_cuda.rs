//! Runs the decoder on a GPU: the same blocks as in `decoder.rs`, with all numbers on the device from the token ids to the statistics.
//!
//! Shapes: `T` tokens of the batch, `N` rows that predict a target, `D` hidden width, `C` columns of queries, keys and values, `F`
//! feed-forward width, `V` vocabulary. The matrices belong to the decoder; the other parameters of a block belong to this module. The residual
//! stream, norms and statistics are f32; the factors of products have the weights' format. A whole batch is enqueued on the device's stream at
//! once, so that the host prepares the next batch while the device computes.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use candle_core::{Device as Candle, Tensor};

use super::Batch;
use super::block::{Block, FeedForward};
use super::config::Config;
use super::cuda_delta::{self, DeltaInputs, DeltaVectors};
use super::cuda_experts::{ExpertSizes, ExpertVectors};
use super::cuda_parts::{bias, factor, norm, on_device, open_by, vector};
use super::decoder::Decoder;
use super::delta_net::DeltaNet;
use super::layers::{Attention, Linear, RmsNorm};
use super::mixer::Mixer;
use crate::error::{Error, Result};
use crate::kernels::attention::{AttentionShape, positions};
use crate::kernels::cpu::lock;
use crate::kernels::cuda::hosted;
use crate::kernels::cuda::{
    Arena, Array, AttentionPlan, Buffer, DeltaPlan, Device, Event, HeadRoom, Indices, Pinned, PrepareOptions, RotaryTables, Rows,
    STATISTICS_WORDS, SUMS_WORDS, arena_bytes, head_chunk, statistics_of_words,
};
use crate::kernels::delta::DeltaShape;
use crate::kernels::rotary::Rotary;
use crate::kernels::statistics::HeadOptions;
use crate::kernels::{Stored, TokenStatistics};

/// The largest K, for the entropy over the K largest logits, that the memory estimate of a batch allows for.
const MAX_TOP_K: usize = 64;

/// The parameters of the decoder on the device, apart from its matrices.
pub(super) struct OnCuda {
    pub(super) device: &'static Device,
    blocks: Vec<BlockVectors>,
    pub(super) norm: Buffer,
    /// The scratch memory of batches; it grows to the largest batch.
    arena: Mutex<Buffer>,
    pub(super) sizes: Sizes,
}

/// The norms, biases and tables of a block.
struct BlockVectors {
    attention_norm: Option<Buffer>,
    mixer: MixerVectors,
    output_bias: Option<Buffer>,
    attention_post_norm: Option<Buffer>,
    mlp_norm: Option<Buffer>,
    mlp: MlpVectors,
    mlp_post_norm: Option<Buffer>,
}

enum MixerVectors {
    Attention(AttentionVectors),
    Delta(DeltaVectors),
}

struct AttentionVectors {
    qkv_bias: Option<Buffer>,
    qk_norm: Option<(Buffer, Buffer)>,
    sinks: Option<Buffer>,
    rotary: Arc<RotaryTables>,
}

enum MlpVectors {
    /// The biases of a dense feed-forward network.
    Dense {
        gate_up: Option<Buffer>,
        down: Option<Buffer>,
    },
    Routed(ExpertVectors),
}

/// The sizes that determine how much memory a batch takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// `D`
    pub width: usize,
    /// The heads of layers with attention.
    pub attention: AttentionShape,
    /// The columns of the gates of the attention's heads; 0 without gates.
    gates: usize,
    /// The heads of layers with the gated delta rule.
    pub delta: Option<DeltaShape>,
    inner: usize,
    experts: Option<ExpertSizes>,
    /// `V`
    pub vocabulary: usize,
    /// The format of the weights.
    pub dtype: Stored,
}

/// Statistics that the device is computing.
pub struct Pending {
    device: &'static Device,
    // Kept until the device has read and written them.
    _input: Pinned,
    output: Pinned,
    n: usize,
    /// The hidden states of the sampled rows, from which curves are computed, with their number and width.
    sampled: Option<(Pinned, (usize, usize))>,
    began: Event,
    decoded: Event,
    ended: Event,
}

/// The results.
pub(super) struct Waited {
    pub tokens: Vec<TokenStatistics>,
    /// `[S, D]` f32 after the final norm, if some were requested.
    pub sampled: Option<Tensor>,
    /// The time that the device spent on the decoder and on the head.
    pub decoder: Duration,
    pub head: Duration,
}

/// The token ids and lists of a batch on the device.
pub(super) struct Inputs<'a> {
    /// `[T]`
    pub ids: Indices<'a>,
    /// The position of each token in its sequence, `[T]`.
    pub positions: Indices<'a>,
    /// The rows that are kept after the last block.
    pub rows: Indices<'a>,
    /// The number of rows before the padding: of all rows, and of those after the last block.
    pub held: usize,
    pub held_rows: usize,
    /// Which rows of the batch the products compute together.
    pub products: Rows,
    /// Which tokens attend to which.
    pub plan: &'a AttentionPlan,
}

/// How the tokens of a batch see others, in a given block.
pub(super) trait Finds<'a> {
    /// Attention: from prepared `[T, q | k | v]` to `[T, heads * head_dim]`.
    fn attend(
        &self,
        block: usize,
        shape: &AttentionShape,
        sinks: Option<&Buffer>,
        qkv: Array<'a>,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>>;

    /// The gated delta rule: from the normalised residual stream `[T, D]` to `[T, W]`.
    fn remember(
        &self,
        block: usize,
        vectors: &DeltaVectors,
        net: &DeltaNet,
        normed: Array,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>>;
}

/// A batch whose tokens see each other, as in scoring.
struct Together<'a> {
    device: &'static Device,
    plan: &'a AttentionPlan,
    tiles: Indices<'a>,
    ranges: Indices<'a>,
    delta: Option<DeltaInputs<'a>>,
}

impl<'a> Finds<'a> for Together<'a> {
    fn attend(
        &self,
        _: usize,
        shape: &AttentionShape,
        sinks: Option<&Buffer>,
        qkv: Array<'a>,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let read = arena.array(qkv.len() / shape.columns() * shape.q_width(), qkv.dtype())?;
        self.device.attention(qkv, None, self.plan, self.tiles, self.ranges, shape, sinks, read)?;
        Ok(read)
    }

    fn remember(&self, _: usize, vectors: &DeltaVectors, net: &DeltaNet, normed: Array, arena: &Arena<'a>) -> Result<Array<'a>> {
        let inputs = self.delta.as_ref().ok_or_else(|| Error::new("a batch was not planned for the gated delta rule"))?;
        vectors.mix(self.device, net, normed, inputs, arena)
    }
}

impl Sizes {
    pub(super) fn new(config: &Config, dtype: Stored) -> Sizes {
        Sizes {
            width: config.hidden_size,
            attention: config.attention_shape(0),
            gates: if config.attention_gates { config.heads * config.head_dim } else { 0 },
            delta: config.delta.as_ref().map(|delta| delta.shape),
            inner: config.intermediate_size,
            experts: config.experts.as_ref().map(ExpertSizes::new),
            vocabulary: config.vocab_size,
            dtype,
        }
    }

    /// The bytes that [`OnCuda::run`] takes from its arena for a batch of `tokens` tokens, of which `n` predict a target.
    pub(super) fn batch_bytes(&self, tokens: usize, n: usize) -> usize {
        let Sizes { width, attention, gates, delta, inner, experts, vocabulary, dtype } = *self;
        let (columns, read) = (attention.columns(), attention.q_width());
        let f32s = |len: usize| arena_bytes(len, Stored::F32);
        let factors = |len: usize| arena_bytes(len, dtype);
        // The residual stream and its last rows; ids, positions, rows, targets, tiles and ranges; statistics.
        let always =
            f32s(tokens * width) + f32s(n * width) + f32s((2 + 5 + 3 * 8) * tokens + 3 * n + 1024) + f32s(STATISTICS_WORDS * n);
        // With gates, the queries, keys and values of the heads are copied to a separate array.
        let projected =
            if gates == 0 { factors(tokens * columns) } else { factors(tokens * (columns + gates)) + factors(tokens * columns) };
        let attention = projected + factors(tokens * read);
        let mixer = attention.max(delta.map_or(0, |shape| cuda_delta::batch_bytes(tokens, &shape, dtype)));
        let widest = read.max(delta.map_or(0, |shape| shape.width()));
        let mixer = factors(tokens * width) + mixer + factors(n * widest) + f32s(tokens * width);
        let dense = factors(tokens * width) + factors(3 * tokens * inner) + f32s(tokens * width);
        let feed_forward = dense.max(experts.map_or(0, |experts| experts.batch_bytes(tokens, width, dtype)));
        // The logits, and for each row its sums and largest logits.
        let chunk = head_chunk(vocabulary).min(n);
        let head = factors(n * width) + f32s(chunk * vocabulary) + f32s(chunk * (SUMS_WORDS + MAX_TOP_K));
        // The sampled rows of the residual stream and their norms, before the head.
        let sampled = 2 * f32s(n * width);
        // A few small arrays, each rounded up to a multiple of 256 bytes.
        always + mixer.max(feed_forward).max(head).max(sampled) + (1 << 16)
    }

    /// The number of tokens of a batch that takes at most a gigabyte, which is enough for products to reach their peak rate.
    pub(super) fn token_budget(&self) -> usize {
        const BYTES: usize = 1 << 30;
        let fits = |tokens: &usize| self.batch_bytes(*tokens, *tokens) <= BYTES;
        (2048..=32_768).rev().step_by(256).find(fits).unwrap_or(2048)
    }
}

impl OnCuda {
    /// Uploads the other parameters of `decoder`, whose matrices are on the device already.
    pub(super) fn new(decoder: &Decoder, config: &Config, dtype: Stored) -> Result<OnCuda> {
        let device = Device::get()?;
        let mut rotary = Rotaries::default();
        let blocks = decoder.blocks.iter().map(|block| BlockVectors::new(device, block, &mut rotary)).collect::<Result<_>>()?;
        // The scale of the logits is folded into the weight of the last norm.
        let weight = (decoder.norm.weight.get() * decoder.logit_scale)?;
        let norm = hosted::upload(device, &weight, Stored::F32)?;
        let sizes = Sizes::new(config, dtype);
        let budget = sizes.token_budget();
        let arena = Mutex::new(device.allocate(sizes.batch_bytes(budget, budget))?);
        Ok(OnCuda { device, blocks, norm, arena, sizes })
    }

    pub(super) fn token_budget(&self) -> usize {
        self.sizes.token_budget()
    }

    /// The hidden states `[N, D]` f32 after the final norm, at `rows` of the batch, on the host.
    pub(super) fn hidden(&self, decoder: &Decoder, batch: &Batch, rows: &[u32]) -> Result<Tensor> {
        let (n, width) = (rows.len(), self.sizes.width);
        let buffer = self.room(self.batch_bytes(batch, n))?;
        let arena = Arena::new(&buffer, Rows::Together);
        let (positions, plan, delta) = self.plan(decoder, batch)?;
        let (residual, pinned, _) = self.run_batch(decoder, batch, [&positions, rows, &[], &[]], &plan, delta, &arena)?;
        let hidden = arena.array(n * width, Stored::F32)?;
        self.device.rms_norm(residual, &self.norm, decoder.norm.eps, hidden)?;
        let hidden = self.device.download(hidden)?;
        drop(pinned);
        Ok(Tensor::from_vec(hidden, (n, width), &Candle::Cpu)?)
    }

    /// Enqueues the computation of the statistics of `targets` at `rows` of the batch, and of the hidden states of the `sampled` rows among
    /// them.
    pub(super) fn statistics(
        &self,
        decoder: &Decoder,
        batch: &Batch,
        rows: &[u32],
        targets: &[u32],
        options: &HeadOptions,
        sampled: &[u32],
    ) -> Result<Pending> {
        let device = self.device;
        let head = on_device(decoder.head())?;
        let vocabulary = head.out_features();
        if let Some(target) = targets.iter().find(|&&target| target as usize >= vocabulary) {
            return Err(Error::new(format!("token id {target} lies outside the model's vocabulary of {vocabulary}"))
                .cure("The tokenizer and the weights do not match."));
        }
        let (n, width) = (rows.len(), self.sizes.width);
        if let Some(target) = sampled.iter().find(|&&target| target as usize >= n) {
            return Err(Error::new(format!("the curve of target {target} was asked for, of {n} targets")));
        }
        let began = device.record()?;
        // The statistics come first because they are copied from the start of the buffer.
        let buffer = self.room(self.batch_bytes(batch, n))?;
        let arena = Arena::new(&buffer, Rows::Together);
        let statistics = arena.array(STATISTICS_WORDS * n, Stored::F32)?;
        let words = statistics.indices(0, STATISTICS_WORDS * n, 0)?;
        let (positions, plan, delta) = self.plan(decoder, batch)?;
        let lists: [&[u32]; 4] = [&positions, rows, targets, sampled];
        let (residual, input, [targets, sampled]) = self.run_batch(decoder, batch, lists, &plan, delta, &arena)?;
        let decoded = device.record()?;
        let sampled = self.sample(decoder, residual, sampled, &arena)?;
        let hidden = arena.array(n * width, head.dtype())?;
        device.rms_norm(residual, &self.norm, decoder.norm.eps, hidden)?;
        let chunk = head_chunk(vocabulary).min(n);
        let room = HeadRoom {
            logits: arena.array(chunk * vocabulary, Stored::F32)?,
            sums: arena.array(chunk * SUMS_WORDS, Stored::F32)?,
            top_logits: arena.array(chunk * options.top_k.min(vocabulary), Stored::F32)?,
        };
        device.head_statistics(hidden, head, targets, words, &room, options)?;
        let output = device.pinned(4 * STATISTICS_WORDS * n)?;
        device.fetch(statistics, &output)?;
        let ended = device.record()?;
        Ok(Pending { device, _input: input, output, n, sampled, began, decoded, ended })
    }

    /// Fetches the hidden states of the sampled rows; the arena's memory for this is given back at once.
    fn sample(
        &self,
        decoder: &Decoder,
        residual: Array,
        rows: Indices,
        arena: &Arena,
    ) -> Result<Option<(Pinned, (usize, usize))>> {
        if rows.is_empty() {
            return Ok(None);
        }
        let (device, shape) = (self.device, (rows.len(), self.sizes.width));
        let mark = arena.mark();
        let [taken, hidden] = [arena.array(shape.0 * shape.1, Stored::F32)?, arena.array(shape.0 * shape.1, Stored::F32)?];
        device.take_rows(residual, rows, taken, shape.1)?;
        device.rms_norm(taken, &self.norm, decoder.norm.eps, hidden)?;
        let pinned = device.pinned(4 * hidden.len())?;
        device.fetch(hidden, &pinned)?;
        arena.give_back(mark);
        Ok(Some((pinned, shape)))
    }

    fn batch_bytes(&self, batch: &Batch, n: usize) -> usize {
        let tokens = batch.ids.len();
        // Tokens that pass through the gated delta rule more than once count that often.
        let steps = |shape: &DeltaShape| DeltaPlan::new(&batch.segments, tokens, shape).n_steps(shape.kernel);
        self.sizes.batch_bytes(self.sizes.delta.as_ref().map_or(tokens, steps).max(tokens), n)
    }

    /// Returns a buffer of at least `bytes` for one batch. Batches run one after the other in the stream, so they share it.
    pub(super) fn room(&self, bytes: usize) -> Result<MutexGuard<'_, Buffer>> {
        let mut arena = lock(&self.arena);
        if arena.bytes() < bytes {
            // Frees the old buffer first, so that both need not fit at once; the device has finished with it by then.
            self.device.synchronize()?;
            *arena = self.device.allocate(0)?;
            *arena = self.device.allocate(bytes)?;
        }
        Ok(arena)
    }

    /// Frees the scratch memory, so that the next batch gets exactly what it asks for.
    #[cfg(test)]
    pub(super) fn shrink(&self) -> Result<()> {
        *lock(&self.arena) = self.device.allocate(0)?;
        Ok(())
    }

    /// The positions of the batch's tokens, and the plans of its attention and its delta rule.
    fn plan(&self, decoder: &Decoder, batch: &Batch) -> Result<(Vec<u32>, AttentionPlan, Option<DeltaPlan>)> {
        let tokens = batch.ids.len();
        let positions = positions(&batch.segments, tokens)?;
        self.check_positions(decoder, &positions)?;
        let Sizes { attention, dtype, delta, .. } = &self.sizes;
        let plan = AttentionPlan::new(&batch.segments, tokens, attention, *dtype, self.device.shared_bytes());
        let delta = delta.as_ref().map(|shape| DeltaPlan::new(&batch.segments, tokens, shape));
        Ok((positions.into_iter().map(|position| position as u32).collect(), plan, delta))
    }

    /// Refuses positions for which a rotary embedding has no angles.
    pub(super) fn check_positions(&self, decoder: &Decoder, positions: &[usize]) -> Result<()> {
        decoder.blocks.iter().try_for_each(|block| match &block.mixer {
            Mixer::Attention(attention) => attention.rotary.check(self.sizes.attention.head_dim, positions),
            Mixer::Delta(_) => Ok(()),
        })
    }

    /// Copies lists to the device in one transfer. The caller keeps the pinned memory until the device has read it.
    pub(super) fn send<'a, const N: usize>(&self, lists: [&[u32]; N], arena: &Arena<'a>) -> Result<([Indices<'a>; N], Pinned)> {
        let bytes = |list: &[u32]| arena_bytes(list.len(), Stored::F32);
        let mut pinned = self.device.pinned(lists.iter().map(|list| bytes(list)).sum())?;
        let mut offset = 0;
        for list in lists {
            pinned.write(offset, list)?;
            offset += bytes(list);
        }
        let all = arena.array(offset / 4, Stored::F32)?;
        self.device.send(&pinned, all)?;
        let mut begin = 0;
        let mut sent = [all.indices(0, 0, 0)?; N];
        for (sent, list) in sent.iter_mut().zip(lists) {
            *sent = all.indices(begin, list.len(), hosted::end(list))?;
            begin += bytes(list) / 4;
        }
        Ok((sent, pinned))
    }

    /// Runs the batch. Returns the residual stream at the requested rows, the pinned memory of the inputs, and the targets and the sampled
    /// rows on the device; the lists are positions, rows, targets and sampled rows.
    fn run_batch<'a>(
        &self,
        decoder: &Decoder,
        batch: &Batch,
        [positions, rows, targets, sampled]: [&[u32]; 4],
        plan: &'a AttentionPlan,
        delta: Option<DeltaPlan>,
        arena: &Arena<'a>,
    ) -> Result<(Array<'a>, Pinned, [Indices<'a>; 2])> {
        let (steps, runs) = delta.as_ref().map_or((&[][..], &[][..]), |plan| (&plan.steps, &plan.runs));
        let lists = [&batch.ids, positions, rows, targets, sampled, &plan.tiles, &plan.ranges, steps, runs];
        let ([ids, positions, rows, targets, sampled, tiles, ranges, steps, runs], pinned) = self.send(lists, arena)?;
        let delta = delta.map(|plan| DeltaInputs { plan, steps, runs });
        let together = Together { device: self.device, plan, tiles, ranges, delta };
        let (held, held_rows, products) = (ids.len(), rows.len(), arena.rows());
        let inputs = Inputs { ids, positions, rows, held, held_rows, products, plan };
        Ok((self.run(decoder, &inputs, &together, arena)?, pinned, [targets, sampled]))
    }

    /// The residual stream `[N, D]` after the last block, at the requested rows.
    pub(super) fn run<'a>(
        &self,
        decoder: &Decoder,
        inputs: &Inputs<'a>,
        finds: &dyn Finds<'a>,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let (width, n) = (self.sizes.width, inputs.rows.len());
        let table = on_device(&decoder.embedding)?;
        let mut residual = arena.array(inputs.ids.len() * width, Stored::F32)?;
        let last = arena.array(n * width, Stored::F32)?;
        self.device.embed(table.array()?, inputs.ids, residual, width, decoder.embedding_scale as f32)?;
        for (index, (block, vectors)) in decoder.blocks.iter().zip(&self.blocks).enumerate() {
            let mark = arena.mark();
            let (mut held, mut products) = (inputs.held, inputs.products);
            let mut mixed = self.mix(index, (block, vectors), residual, inputs, finds, arena)?;
            // Nothing attends to the last block's output, so only the requested rows are kept.
            if index + 1 == decoder.blocks.len() {
                let mixed_width = block.mixer.output().matrix.in_features();
                let rows = arena.array(n * mixed_width, mixed.dtype())?;
                self.device.take_rows(mixed, inputs.rows, rows, mixed_width)?;
                self.device.take_rows(residual, inputs.rows, last, width)?;
                (mixed, residual, held, products) = (rows, last, inputs.held_rows, arena.rows());
            }
            let output = Output { linear: block.mixer.output(), bias: vectors.output_bias.as_ref() };
            let norm = block.attention_post_norm.as_ref().zip(vectors.attention_post_norm.as_ref());
            self.add_to(residual, output, mixed, norm, products, arena)?;
            arena.give_back(mark);
            self.feed_forward((block, vectors), residual, held, products, arena)?;
            arena.give_back(mark);
        }
        Ok(residual)
    }

    /// The gated output of a block's heads: `[T, M]`.
    fn mix<'a>(
        &self,
        index: usize,
        (block, vectors): (&Block, &BlockVectors),
        residual: Array<'a>,
        inputs: &Inputs,
        finds: &dyn Finds<'a>,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let norm = block.attention_norm.as_ref().zip(vectors.attention_norm.as_ref());
        let normed = |dtype| self.normed(residual, norm, dtype, arena);
        match (&block.mixer, &vectors.mixer) {
            (Mixer::Attention(attention), MixerVectors::Attention(vectors)) => {
                let normed = normed(on_device(&attention.qkv.matrix)?.dtype())?;
                let (projected, qkv, options) = self.prepare(attention, vectors, normed, inputs, arena)?;
                let read = finds.attend(index, &attention.shape, vectors.sinks.as_ref(), qkv, arena)?;
                if attention.gated {
                    self.device.open_gates(projected, &options, inputs.plan, read)?;
                }
                Ok(read)
            }
            (Mixer::Delta(net), MixerVectors::Delta(vectors)) => {
                finds.remember(index, vectors, net, normed(on_device(&net.input.matrix)?.dtype())?, arena)
            }
            _ => Err(Error::new("the vectors on the GPU belong to another block")),
        }
    }

    /// Queries, keys and values ready for the heads, `[T, q | k | v]`, as the second element; the first is the raw projection, with gates if
    /// any.
    fn prepare<'a, 'b>(
        &self,
        attention: &'b Attention,
        vectors: &'b AttentionVectors,
        normed: Array,
        inputs: &Inputs,
        arena: &Arena<'a>,
    ) -> Result<(Array<'a>, Array<'a>, PrepareOptions<'b>)> {
        let (tokens, weight) = (inputs.positions.len(), on_device(&attention.qkv.matrix)?);
        let projected = arena.array(tokens * weight.out_features(), weight.dtype())?;
        self.device.multiply(normed, weight, projected, false, inputs.products)?;
        let columns = attention.shape.columns();
        let qkv = if attention.gated { arena.array(tokens * columns, weight.dtype())? } else { projected };
        let eps = attention.qk_norm.as_ref().map_or(0.0, |(q, _)| q.eps);
        let options = PrepareOptions {
            shape: &attention.shape,
            rotary: &vectors.rotary,
            bias: vectors.qkv_bias.as_ref(),
            norms: vectors.qk_norm.as_ref().map(|(q, k)| (q, k, eps)),
            gated: attention.gated,
            growth: attention.growth.map(|growth| (growth.beta as f32, growth.original_positions)),
        };
        self.device.prepare_attention(projected, qkv, &options, inputs.plan, inputs.positions)?;
        Ok((projected, qkv, options))
    }

    /// Adds the output of the feed-forward network to the residual stream, whose rows from `held` on are padding.
    fn feed_forward<'a>(
        &self,
        (block, vectors): (&Block, &BlockVectors),
        residual: Array<'a>,
        held: usize,
        products: Rows,
        arena: &Arena<'a>,
    ) -> Result<()> {
        let norm = block.mlp_post_norm.as_ref().zip(vectors.mlp_post_norm.as_ref());
        let before = block.mlp_norm.as_ref().zip(vectors.mlp_norm.as_ref());
        match (&block.mlp, &vectors.mlp) {
            (FeedForward::Dense(mlp), MlpVectors::Dense { gate_up, down }) => {
                let weight = on_device(&mlp.gate_up.matrix)?;
                let normed = self.normed(residual, before, weight.dtype(), arena)?;
                let bias = gate_up.as_ref().map(|bias| bias.array(0, weight.out_features(), Stored::F32)).transpose()?;
                let inner = open_by(self.device, mlp, bias, normed, products, arena)?;
                let output = Output { linear: &mlp.down, bias: down.as_ref() };
                self.add_to(residual, output, inner, norm, products, arena)
            }
            (FeedForward::Routed(experts), MlpVectors::Routed(vectors)) => {
                if norm.is_some() {
                    return Err(Error::new("experts with a norm behind them have no kernels on the GPU"));
                }
                let normed = self.normed(residual, before, Stored::F32, arena)?;
                vectors.add_to(self.device, experts, normed, held, residual, arena)
            }
            _ => Err(Error::new("the vectors on the GPU belong to another block")),
        }
    }

    /// The input of one half of a block: the residual stream, normalised if there is a norm.
    fn normed<'a>(
        &self,
        residual: Array<'a>,
        norm: Option<(&RmsNorm, &Buffer)>,
        dtype: Stored,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let Some((norm, weight)) = norm else { return factor(self.device, residual, dtype, arena) };
        let normed = arena.array(residual.len(), dtype)?;
        self.device.rms_norm(residual, weight, norm.eps, normed)?;
        Ok(normed)
    }

    /// Adds `x W^T + b`, normalised if there is a norm, to the residual stream.
    fn add_to(
        &self,
        residual: Array,
        output: Output,
        x: Array,
        norm: Option<(&RmsNorm, &Buffer)>,
        products: Rows,
        arena: &Arena,
    ) -> Result<()> {
        let weight = on_device(&output.linear.matrix)?;
        let width = self.sizes.width;
        match norm {
            None => {
                self.device.multiply(x, weight, residual, true, products)?;
                output.bias.map_or(Ok(()), |bias| self.device.add_bias(bias, residual, width))
            }
            Some((norm, vector)) => {
                let added = arena.array(residual.len(), Stored::F32)?;
                self.device.multiply(x, weight, added, false, products)?;
                output.bias.map_or(Ok(()), |bias| self.device.add_bias(bias, added, width))?;
                self.device.rms_norm_add(added, vector, norm.eps, residual)
            }
        }
    }
}

/// The product at the end of one half of a block.
struct Output<'a> {
    linear: &'a Linear,
    bias: Option<&'a Buffer>,
}

impl Pending {
    /// Waits for the statistics.
    pub(super) fn wait(self) -> Result<Waited> {
        self.device.wait(&self.ended)?;
        let (words, _) = self.output.words(STATISTICS_WORDS * self.n)?.as_chunks();
        let sampled = match &self.sampled {
            Some((hidden, shape)) => Some(Tensor::from_slice(hidden.floats(shape.0 * shape.1)?, *shape, &Candle::Cpu)?),
            None => None,
        };
        Ok(Waited {
            tokens: words.iter().map(statistics_of_words).collect(),
            sampled,
            decoder: self.device.between(&self.began, &self.decoded)?,
            head: self.device.between(&self.decoded, &self.ended)?,
        })
    }
}

impl BlockVectors {
    fn new(device: &'static Device, block: &Block, rotary: &mut Rotaries) -> Result<BlockVectors> {
        let optional = |found: &Option<RmsNorm>| found.as_ref().map(|found| norm(device, found)).transpose();
        Ok(BlockVectors {
            attention_norm: optional(&block.attention_norm)?,
            mixer: match &block.mixer {
                Mixer::Attention(attention) => MixerVectors::Attention(AttentionVectors::new(device, attention, rotary)?),
                Mixer::Delta(delta) => MixerVectors::Delta(DeltaVectors::new(device, delta)?),
            },
            output_bias: bias(device, block.mixer.output())?,
            attention_post_norm: optional(&block.attention_post_norm)?,
            mlp_norm: optional(&block.mlp_norm)?,
            mlp: match &block.mlp {
                FeedForward::Dense(mlp) => {
                    MlpVectors::Dense { gate_up: bias(device, &mlp.gate_up)?, down: bias(device, &mlp.down)? }
                }
                FeedForward::Routed(experts) => MlpVectors::Routed(ExpertVectors::new(device, experts)?),
            },
            mlp_post_norm: optional(&block.mlp_post_norm)?,
        })
    }
}

impl AttentionVectors {
    fn new(device: &'static Device, attention: &Attention, rotary: &mut Rotaries) -> Result<AttentionVectors> {
        let qk_norm = match &attention.qk_norm {
            Some((q, k)) => Some((norm(device, q)?, norm(device, k)?)),
            None => None,
        };
        Ok(AttentionVectors {
            qkv_bias: bias(device, &attention.qkv)?,
            qk_norm,
            sinks: attention.sinks.as_ref().map(|(sinks, _)| vector(device, sinks)).transpose()?,
            rotary: rotary.of(device, &attention.rotary)?,
        })
    }
}

/// The uploaded tables, by their address on the host, because many blocks share one.
#[derive(Default)]
struct Rotaries(Vec<(*const f32, Arc<RotaryTables>)>);

impl Rotaries {
    fn of(&mut self, device: &'static Device, rotary: &Rotary) -> Result<Arc<RotaryTables>> {
        let address = rotary.cos.as_ptr();
        if let Some((_, tables)) = self.0.iter().find(|(known, _)| *known == address) {
            return Ok(tables.clone());
        }
        let tables = Arc::new(RotaryTables::new(device, rotary)?);
        self.0.push((address, tables.clone()));
        Ok(tables)
    }
}
