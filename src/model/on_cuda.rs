//! The decoder on a GPU: the same blocks as in `decoder.rs`, with every number on the device from the token ids to the statistics.
//!
//! Shapes: `T` tokens of the batch, `N` rows that predict a target, `D` hidden width, `C` columns of queries, keys and values, `F`
//! feed-forward width, `V` vocabulary. The matrices stand in the decoder; what else a block needs stands here. The residual stream, norms
//! and statistics are f32; the factors of products have the weights' format. All work of a batch is put into the device's stream at once,
//! so that the next batch is prepared while this one is computed.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use candle_core::{Device as Candle, Tensor};

use super::block::{Block, FeedForward};
use super::config::Config;
use super::decoder::Decoder;
use super::experts::Experts;
use super::layers::{Attention, Linear, Mlp, RmsNorm};
use super::{Batch, parameters::Vector};
use crate::error::{Error, Result};
use crate::kernels::attention::{AttentionShape, positions};
use crate::kernels::cpu::lock;
use crate::kernels::cuda::hosted;
use crate::kernels::cuda::{
    Arena, Array, AttentionPlan, Buffer, Device, Event, HeadRoom, Indices, Pinned, PrepareOptions, RotaryTables, Rows,
    STATISTICS_WORDS, SUMS_WORDS, Weight, arena_bytes, head_chunk, statistics_of_words,
};
use crate::kernels::matmul::Matrix;
use crate::kernels::statistics::HeadOptions;
use crate::kernels::{Stored, TokenStatistics};

/// The largest K of the entropy over the K largest logits that a batch's memory is reckoned for.
const MAX_TOP_K: usize = 64;

/// What the decoder needs on the device beside its matrices.
pub(super) struct OnCuda {
    pub(super) device: &'static Device,
    blocks: Vec<BlockVectors>,
    pub(super) norm: Buffer,
    /// What a batch is computed in; it grows to the largest.
    arena: Mutex<Buffer>,
    pub(super) sizes: Sizes,
}

/// Norms, biases and tables of a block.
struct BlockVectors {
    attention_norm: Option<Buffer>,
    qkv_bias: Option<Buffer>,
    qk_norm: Option<(Buffer, Buffer)>,
    output_bias: Option<Buffer>,
    attention_post_norm: Option<Buffer>,
    mlp_norm: Option<Buffer>,
    gate_up_bias: Option<Buffer>,
    down_bias: Option<Buffer>,
    mlp_post_norm: Option<Buffer>,
    rotary: Arc<RotaryTables>,
}

/// What the memory of a batch depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub width: usize,
    /// Columns of queries, keys and values, and of the heads' outputs.
    pub columns: usize,
    pub mixed: usize,
    pub inner: usize,
    /// 0 without a router.
    pub experts: usize,
    pub vocabulary: usize,
    pub dtype: Stored,
}

/// Statistics that the device is computing.
pub struct Pending {
    device: &'static Device,
    // Kept until the device has read and written them.
    _input: Pinned,
    output: Pinned,
    n: usize,
    began: Event,
    decoded: Event,
    ended: Event,
}

/// Token ids and the like of a batch on the device.
pub(super) struct Inputs<'a> {
    pub ids: Indices<'a>,
    pub positions: Indices<'a>,
    /// What goes on behind the last block.
    pub rows: Indices<'a>,
    pub plan: &'a AttentionPlan,
}

/// What the heads of a block, of this number, read: from prepared `[T, q | k | v]` to `[T, heads * head_dim]`.
pub(super) type Read<'r, 'a> = dyn Fn(usize, &AttentionShape, Array<'a>, &Arena<'a>) -> Result<Array<'a>> + 'r;

impl Sizes {
    pub(super) fn new(config: &Config, dtype: Stored) -> Sizes {
        let experts = config.experts.as_ref();
        let inner = experts.map_or(0, |experts| experts.intermediate_size).max(config.intermediate_size);
        Sizes {
            width: config.hidden_size,
            columns: (config.heads + 2 * config.kv_heads) * config.head_dim,
            mixed: config.heads * config.head_dim,
            inner,
            experts: experts.map_or(0, |experts| experts.count),
            vocabulary: config.vocab_size,
            dtype,
        }
    }

    /// Bytes that a batch of `tokens` is computed in, of which `n` predict a target: what [`OnCuda::run`] takes of its arena.
    pub(super) fn batch_bytes(&self, tokens: usize, n: usize) -> usize {
        let Sizes { width, columns, mixed, inner, experts, vocabulary, dtype } = *self;
        let f32s = |len: usize| arena_bytes(len, Stored::F32);
        let factors = |len: usize| arena_bytes(len, dtype);
        // The residual stream and its last rows; ids, positions, rows, targets, tiles and ranges; statistics.
        let always =
            f32s(tokens * width) + f32s(n * width) + f32s((2 + 5 + 3 * 8) * tokens + 2 * n + 1024) + f32s(STATISTICS_WORDS * n);
        let attention = factors(tokens * width) + factors(tokens * columns) + factors(tokens * mixed) + factors(n * mixed);
        // Experts: their input in f32, the router's logits or, for one expert, the rows it takes, twice, their numbers and its output.
        let routed = if experts == 0 { 0 } else { f32s(tokens * (4 * width + experts + 2)) };
        let feed_forward = factors(tokens * width) + factors(3 * tokens * inner) + f32s(tokens * width) + routed;
        // Logits, and beside each row its sums and largest logits.
        let chunk = head_chunk(vocabulary).min(n);
        let head = factors(n * width) + f32s(chunk * vocabulary) + f32s(chunk * (SUMS_WORDS + MAX_TOP_K));
        // A few arrays more, each up to a multiple of 256 bytes.
        always + attention.max(feed_forward).max(head) + (1 << 16)
    }

    /// Tokens of a batch that takes a gigabyte at most: many enough that products reach their peak rate.
    pub(super) fn token_budget(&self) -> usize {
        const BYTES: usize = 1 << 30;
        let fits = |tokens: &usize| self.batch_bytes(*tokens, *tokens) <= BYTES;
        (2048..=32_768).rev().step_by(256).find(fits).unwrap_or(2048)
    }
}

impl OnCuda {
    /// Uploads what stands beside the matrices of `decoder`, which are there already.
    pub(super) fn new(decoder: &Decoder, config: &Config, dtype: Stored) -> Result<OnCuda> {
        let device = Device::get()?;
        let mut tables: Vec<(*const f32, Arc<RotaryTables>)> = Vec::new();
        let mut blocks = Vec::with_capacity(decoder.blocks.len());
        for block in &decoder.blocks {
            let rotary = &block.mixer.attention()?.rotary;
            let address = rotary.cos.as_ptr();
            let found = tables.iter().find(|(known, _)| *known == address).map(|(_, tables)| tables.clone());
            let rotary = match found {
                Some(found) => found,
                None => {
                    let new = Arc::new(RotaryTables::new(device, rotary)?);
                    tables.push((address, new.clone()));
                    new
                }
            };
            blocks.push(BlockVectors::new(device, block, rotary)?);
        }
        // The last norm's weight takes in what multiplies the logits.
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

    /// Hidden states `[N, D]` f32 after the final norm, at `rows` of the batch, on the host.
    pub(super) fn hidden(&self, decoder: &Decoder, batch: &Batch, rows: &[u32]) -> Result<Tensor> {
        let (n, width) = (rows.len(), self.sizes.width);
        let buffer = self.room(self.sizes.batch_bytes(batch.ids.len(), n))?;
        let arena = Arena::new(&buffer, Rows::Together);
        let (positions, plan) = self.plan(decoder, batch)?;
        let lists = [&batch.ids, &positions, rows, &plan.tiles, &plan.ranges];
        let ([ids, positions, rows, tiles, ranges], pinned) = self.send(lists, &arena)?;
        let inputs = Inputs { ids, positions, rows, plan: &plan };
        let residual = self.run(decoder, &inputs, &self.read_batch(&plan, tiles, ranges), &arena)?;
        let hidden = arena.array(n * width, Stored::F32)?;
        self.device.rms_norm(residual, &self.norm, decoder.norm.eps, hidden)?;
        let hidden = self.device.download(hidden)?;
        drop(pinned);
        Ok(Tensor::from_vec(hidden, (n, width), &Candle::Cpu)?)
    }

    /// Puts the statistics of `targets` at `rows` of the batch into the device's stream.
    pub(super) fn statistics(
        &self,
        decoder: &Decoder,
        batch: &Batch,
        rows: &[u32],
        targets: &[u32],
        options: &HeadOptions,
    ) -> Result<Pending> {
        let device = self.device;
        let head = on_device(decoder.head())?;
        let vocabulary = head.out_features();
        if let Some(target) = targets.iter().find(|&&target| target as usize >= vocabulary) {
            return Err(Error::new(format!("token id {target} lies outside the model's vocabulary of {vocabulary}"))
                .cure("The tokenizer and the weights do not belong together."));
        }
        let (n, width) = (rows.len(), self.sizes.width);
        let began = device.record()?;
        // The statistics come first: they are fetched from the buffer's beginning.
        let bytes = self.sizes.batch_bytes(batch.ids.len(), n);
        let buffer = self.room(bytes)?;
        let arena = Arena::new(&buffer, Rows::Together);
        let statistics = arena.array(STATISTICS_WORDS * n, Stored::F32)?;
        let words = statistics.indices(0, STATISTICS_WORDS * n, 0)?;
        let (positions, plan) = self.plan(decoder, batch)?;
        let lists = [&batch.ids, &positions, rows, targets, &plan.tiles, &plan.ranges];
        let ([ids, positions, rows, targets, tiles, ranges], input) = self.send(lists, &arena)?;
        let inputs = Inputs { ids, positions, rows, plan: &plan };
        let residual = self.run(decoder, &inputs, &self.read_batch(&plan, tiles, ranges), &arena)?;
        let decoded = device.record()?;
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
        device.fetch(&buffer, &output, 4 * STATISTICS_WORDS * n)?;
        let ended = device.record()?;
        Ok(Pending { device, _input: input, output, n, began, decoded, ended })
    }

    /// A buffer of at least `bytes` for one batch. Batches follow each other in the stream, so that they share it.
    pub(super) fn room(&self, bytes: usize) -> Result<MutexGuard<'_, Buffer>> {
        let mut arena = lock(&self.arena);
        if arena.bytes() < bytes {
            // The old one goes first, so that both need not fit; what was computed in it has left it by then.
            self.device.synchronize()?;
            *arena = self.device.allocate(0)?;
            *arena = self.device.allocate(bytes)?;
        }
        Ok(arena)
    }

    /// Positions of the batch's tokens, and what its attention computes.
    fn plan(&self, decoder: &Decoder, batch: &Batch) -> Result<(Vec<u32>, AttentionPlan)> {
        let tokens = batch.ids.len();
        let positions = positions(&batch.segments, tokens)?;
        let shape = check_positions(decoder, &positions)?;
        let plan = AttentionPlan::new(&batch.segments, tokens, shape, self.sizes.dtype, self.device.shared_bytes());
        Ok((positions.into_iter().map(|position| position as u32).collect(), plan))
    }

    /// Copies lists to the device, in one piece. The pinned memory is kept until the device has read it.
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

    /// The residual stream `[N, D]` behind the last block, at the rows that are asked for.
    pub(super) fn run<'a>(
        &self,
        decoder: &Decoder,
        inputs: &Inputs<'a>,
        read: &Read<'_, 'a>,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let (width, n) = (self.sizes.width, inputs.rows.len());
        let table = on_device(&decoder.embedding)?;
        let mut residual = arena.array(inputs.ids.len() * width, Stored::F32)?;
        let last = arena.array(n * width, Stored::F32)?;
        self.device.embed(table.array()?, inputs.ids, residual, width, decoder.embedding_scale as f32)?;
        for (index, (block, vectors)) in decoder.blocks.iter().zip(&self.blocks).enumerate() {
            let mark = arena.mark();
            let (attention, qkv) = self.prepare(block, vectors, residual, inputs, arena)?;
            let mut mixed = read(index, &attention.shape, qkv, arena)?;
            // Nothing attends to the last block's output: only what is asked for goes on.
            if index + 1 == decoder.blocks.len() {
                let rows = arena.array(n * self.sizes.mixed, mixed.dtype())?;
                self.device.take_rows(mixed, inputs.rows, rows, self.sizes.mixed)?;
                self.device.take_rows(residual, inputs.rows, last, width)?;
                (mixed, residual) = (rows, last);
            }
            let output = Output { linear: &attention.output, bias: vectors.output_bias.as_ref() };
            let norm = block.attention_post_norm.as_ref().zip(vectors.attention_post_norm.as_ref());
            self.add_to(residual, output, mixed, norm, arena)?;
            arena.give_back(mark);
            self.feed_forward(block, vectors, residual, arena)?;
            arena.give_back(mark);
        }
        Ok(residual)
    }

    /// Queries, keys and values as the heads want them: `[T, q | k | v]`.
    fn prepare<'a, 'b>(
        &self,
        block: &'b Block,
        vectors: &BlockVectors,
        residual: Array,
        inputs: &Inputs,
        arena: &Arena<'a>,
    ) -> Result<(&'b Attention, Array<'a>)> {
        let Sizes { width, columns, .. } = self.sizes;
        let (tokens, attention) = (residual.len() / width, block.mixer.attention()?);
        let weight = on_device(&attention.qkv.matrix)?;
        let norm = block.attention_norm.as_ref().zip(vectors.attention_norm.as_ref());
        let normed = self.normed(residual, norm, weight.dtype(), arena)?;
        let qkv = arena.array(tokens * columns, weight.dtype())?;
        self.device.multiply(normed, weight, qkv, false, arena.rows())?;
        let eps = attention.qk_norm.as_ref().map_or(0.0, |(q, _)| q.eps);
        let options = PrepareOptions {
            shape: &attention.shape,
            rotary: &vectors.rotary,
            bias: vectors.qkv_bias.as_ref(),
            norms: vectors.qk_norm.as_ref().map(|(q, k)| (q, k, eps)),
        };
        self.device.prepare_attention(qkv, &options, inputs.plan, inputs.positions)?;
        Ok((attention, qkv))
    }

    /// What the heads read of their own batch.
    fn read_batch<'a>(
        &self,
        plan: &AttentionPlan,
        tiles: Indices,
        ranges: Indices,
    ) -> impl Fn(usize, &AttentionShape, Array<'a>, &Arena<'a>) -> Result<Array<'a>> {
        move |_, shape, qkv, arena| {
            let read = arena.array(qkv.len() / shape.columns() * self.sizes.mixed, qkv.dtype())?;
            self.device.attention(qkv, None, plan, tiles, ranges, shape, read)?;
            Ok(read)
        }
    }

    /// Adds what the feed-forward network makes of the residual stream to it.
    fn feed_forward(&self, block: &Block, vectors: &BlockVectors, residual: Array, arena: &Arena) -> Result<()> {
        let norm = block.mlp_post_norm.as_ref().zip(vectors.mlp_post_norm.as_ref());
        match &block.mlp {
            FeedForward::Dense(mlp) => {
                let weight = on_device(&mlp.gate_up.matrix)?;
                let before = block.mlp_norm.as_ref().zip(vectors.mlp_norm.as_ref());
                let normed = self.normed(residual, before, weight.dtype(), arena)?;
                let inner = self.open(mlp, vectors.gate_up_bias.as_ref(), normed, arena)?;
                let output = Output { linear: &mlp.down, bias: vectors.down_bias.as_ref() };
                self.add_to(residual, output, inner, norm, arena)
            }
            FeedForward::Routed(experts) => {
                if norm.is_some() || experts.shared.is_some() {
                    return Err(Error::new("experts with a norm behind them or a shared network have no kernels on the GPU"));
                }
                let before = block.mlp_norm.as_ref().zip(vectors.mlp_norm.as_ref());
                let normed = self.normed(residual, before, Stored::F32, arena)?;
                self.route(experts, normed, residual, arena)
            }
        }
    }

    /// What a half of a block reads of the residual stream: its norm.
    fn normed<'a>(
        &self,
        residual: Array,
        norm: Option<(&RmsNorm, &Buffer)>,
        dtype: Stored,
        arena: &Arena<'a>,
    ) -> Result<Array<'a>> {
        let (norm, weight) = norm.ok_or_else(|| Error::new("a block without a norm in front has no kernels on the GPU"))?;
        let normed = arena.array(residual.len(), dtype)?;
        self.device.rms_norm(residual, weight, norm.eps, normed)?;
        Ok(normed)
    }

    /// `activation(gate) * up`: `[T, D] -> [T, F]`.
    fn open<'a>(&self, mlp: &Mlp, bias: Option<&Buffer>, x: Array, arena: &Arena<'a>) -> Result<Array<'a>> {
        let weight = on_device(&mlp.gate_up.matrix)?;
        let (tokens, inner) = (x.len() / self.sizes.width, weight.out_features() / 2);
        let gate_up = arena.array(2 * tokens * inner, weight.dtype())?;
        self.device.multiply(x, weight, gate_up, false, arena.rows())?;
        let y = arena.array(tokens * inner, weight.dtype())?;
        self.device.gated(gate_up, bias, mlp.activation, y, inner)?;
        Ok(y)
    }

    /// Adds `x W^T + b` to the residual stream, through a norm where there is one.
    fn add_to(&self, residual: Array, output: Output, x: Array, norm: Option<(&RmsNorm, &Buffer)>, arena: &Arena) -> Result<()> {
        let weight = on_device(&output.linear.matrix)?;
        let width = self.sizes.width;
        match norm {
            None => {
                self.device.multiply(x, weight, residual, true, arena.rows())?;
                output.bias.map_or(Ok(()), |bias| self.device.add_bias(bias, residual, width))
            }
            Some((norm, vector)) => {
                let added = arena.array(residual.len(), Stored::F32)?;
                self.device.multiply(x, weight, added, false, arena.rows())?;
                output.bias.map_or(Ok(()), |bias| self.device.add_bias(bias, added, width))?;
                self.device.rms_norm_add(added, vector, norm.eps, residual)
            }
        }
    }

    /// Adds the experts' outputs to the residual stream. Who is chosen is decided on the host, as in `experts.rs`; then each expert computes
    /// the tokens that chose it.
    fn route(&self, experts: &Experts, x: Array, residual: Array, arena: &Arena) -> Result<()> {
        let (width, device) = (self.sizes.width, self.device);
        let tokens = x.len() / width;
        let router = on_device(&experts.router.matrix)?;
        let mark = arena.mark();
        let logits = arena.array(tokens * router.out_features(), Stored::F32)?;
        device.multiply(x, router, logits, false, arena.rows())?;
        let choices = experts.choose_by_expert(&device.download(logits)?)?;
        arena.give_back(mark);
        for (expert, (rows, weights)) in experts.experts.iter().zip(choices).filter(|(_, (rows, _))| !rows.is_empty()) {
            let mark = arena.mark();
            let words: Vec<u32> = rows.iter().copied().chain(weights.iter().map(|weight| weight.to_bits())).collect();
            let mut pinned = device.pinned(size_of_val(words.as_slice()))?;
            pinned.write(0, &words)?;
            let all = arena.array(words.len(), Stored::F32)?;
            device.send(&pinned, all)?;
            let (n, weight) = (rows.len(), on_device(&expert.gate_up.matrix)?);
            let (chosen, weights) = (all.indices(0, n, hosted::end(&rows))?, all.part(n, n)?);
            let taken = arena.array(n * width, Stored::F32)?;
            device.take_rows(x, chosen, taken, width)?;
            let input = match weight.dtype() {
                Stored::F32 => taken,
                Stored::Bf16 => {
                    let rounded = arena.array(n * width, Stored::Bf16)?;
                    device.round(taken, rounded)?;
                    rounded
                }
            };
            let inner = self.open(expert, None, input, arena)?;
            let y = arena.array(n * width, Stored::F32)?;
            device.multiply(inner, on_device(&expert.down.matrix)?, y, false, arena.rows())?;
            device.add_rows(y, chosen, weights, residual, width)?;
            // The host's memory is used again.
            device.synchronize()?;
            arena.give_back(mark);
        }
        Ok(())
    }
}

/// The product that ends a half of a block.
struct Output<'a> {
    linear: &'a Linear,
    bias: Option<&'a Buffer>,
}

impl Pending {
    /// Waits for the statistics; the seconds that the device worked on the decoder and on the head.
    pub fn wait(self) -> Result<(Vec<TokenStatistics>, Duration, Duration)> {
        self.device.wait(&self.ended)?;
        let (words, _) = self.output.words(STATISTICS_WORDS * self.n)?.as_chunks();
        let statistics = words.iter().map(statistics_of_words).collect();
        Ok((statistics, self.device.between(&self.began, &self.decoded)?, self.device.between(&self.decoded, &self.ended)?))
    }
}

impl BlockVectors {
    fn new(device: &'static Device, block: &Block, rotary: Arc<RotaryTables>) -> Result<BlockVectors> {
        let bias = |linear: &Linear| linear.bias.as_ref().map(|bias| vector(device, bias)).transpose();
        let optional = |found: &Option<RmsNorm>| found.as_ref().map(|found| norm(device, found)).transpose();
        let attention = block.mixer.attention()?;
        let (gate_up_bias, down_bias) = match &block.mlp {
            FeedForward::Dense(mlp) => (bias(&mlp.gate_up)?, bias(&mlp.down)?),
            FeedForward::Routed(_) => (None, None),
        };
        let qk_norm = match &attention.qk_norm {
            Some((q, k)) => Some((norm(device, q)?, norm(device, k)?)),
            None => None,
        };
        Ok(BlockVectors {
            attention_norm: optional(&block.attention_norm)?,
            qkv_bias: bias(&attention.qkv)?,
            qk_norm,
            output_bias: bias(&attention.output)?,
            attention_post_norm: optional(&block.attention_post_norm)?,
            mlp_norm: optional(&block.mlp_norm)?,
            gate_up_bias,
            down_bias,
            mlp_post_norm: optional(&block.mlp_post_norm)?,
            rotary,
        })
    }
}

fn norm(device: &'static Device, norm: &RmsNorm) -> Result<Buffer> {
    vector(device, &norm.weight)
}

fn vector(device: &'static Device, vector: &Vector) -> Result<Buffer> {
    hosted::upload(device, &vector.get(), Stored::F32)
}

/// Refuses positions that a rotary embedding has no angles for; the shape of the first block's attention.
pub(super) fn check_positions<'a>(decoder: &'a Decoder, positions: &[usize]) -> Result<&'a AttentionShape> {
    let first = decoder.blocks.first().ok_or_else(|| Error::new("a decoder without blocks"))?.mixer.attention()?;
    decoder.blocks.iter().try_for_each(|block| block.mixer.attention()?.rotary.check(first.shape.head_dim, positions))?;
    Ok(&first.shape)
}

pub(super) fn on_device(matrix: &Matrix) -> Result<&Weight> {
    matrix.on_device().ok_or_else(|| Error::new("a weight of the model is not on the GPU"))
}
