//! The operations of this room on arrays of the device: each checks lengths and formats, then launches its kernel and returns at once.

use std::ops::Range;

use super::array::Argument::{self, F32, Pointer, U32, U64};
use super::array::{Array, Indices};
use super::compile::Source;
use super::device::{Buffer, Device};
use super::product::Weight;
use super::shape::Rows;
use crate::error::{Error, Result};
use crate::kernels::attention::AttentionShape;
use crate::kernels::gated::{Activation, ClampedSwiglu};
use crate::kernels::rotary::{Rotary, RotaryStyle};
use crate::kernels::statistics::HeadOptions;
use crate::kernels::{Choice, NEXT_CHOICES, Segment, Stored, TokenStatistics};

/// Threads of a block that works on one row, and of norm.cu's.
const ROW_THREADS: usize = 256;
const NORM_THREADS: usize = 256;
/// attention.cu: `PREPARING`.
const PREPARING_THREADS: usize = 256;
/// Blocks of a kernel that walks over all numbers there are.
const WALKING_BLOCKS: usize = 4096;

impl Device {
    /// Rounds f32 to bf16.
    pub fn round(&self, x: Array, y: Array) -> Result<()> {
        y.expect("rounded numbers", x.len(), Stored::Bf16)?;
        self.convert("round_to_bf16", x, y)
    }

    /// bf16 to f32.
    pub fn widen(&self, x: Array, y: Array) -> Result<()> {
        y.expect("widened numbers", x.len(), Stored::F32)?;
        self.convert("widen_to_f32", x, y)
    }

    fn convert(&self, name: &'static str, x: Array, y: Array) -> Result<()> {
        let blocks = x.len().div_ceil(256).min(WALKING_BLOCKS);
        let kernel = self.kernel(Source::Rows, name)?;
        // SAFETY: the kernel reads and writes `len` numbers, which both arrays hold.
        unsafe { self.launch(kernel, (blocks, 1), 256, 0, &[x.argument(), y.argument(), U64(x.len() as u64)]) }
    }

    /// `y [T, D]` f32: rows `ids` of `table [V, D]` times `scale`.
    pub fn embed(&self, table: Array, ids: Indices, y: Array, width: usize, scale: f32) -> Result<()> {
        y.expect("embeddings", ids.len() * width, Stored::F32)?;
        check_rows(ids, table, width)?;
        let name = if table.dtype() == Stored::F32 { "embed_f32" } else { "embed_bf16" };
        self.by_row(name, ids.len(), width, &[table.argument(), ids.argument(), y.argument(), U32(width as u32), F32(scale)])
    }

    /// `y [N, D]`: rows `rows` of `x`.
    pub fn take_rows(&self, x: Array, rows: Indices, y: Array, width: usize) -> Result<()> {
        y.expect("chosen rows", rows.len() * width, x.dtype())?;
        check_rows(rows, x, width)?;
        let bytes = width * x.dtype().size_in_bytes() as usize;
        let in_units = [x.address, y.address, bytes as u64].into_iter().all(|number| number.is_multiple_of(16));
        let (name, width) = match x.dtype() {
            _ if in_units => ("take_rows_16", bytes / 16),
            Stored::F32 => ("take_rows_f32", width),
            Stored::Bf16 => ("take_rows_bf16", width),
        };
        self.by_row(name, rows.len(), width, &[x.argument(), rows.argument(), y.argument(), U32(width as u32)])
    }

    /// Columns `first ..` of the rows of `x`, as wide as a row of `y`, become rows `rows` of `y`; none stands twice among them.
    pub fn put_rows(&self, x: Array, x_width: usize, first: usize, rows: Indices, y: Array, width: usize) -> Result<()> {
        y.expect("rows to be replaced", y.len(), x.dtype())?;
        check_rows(rows, y, width)?;
        if first + width > x_width || whole_rows("a choice of columns", x, x_width)? < rows.len() {
            return Err(Error::new(format!(
                "columns {first} to {} of {} rows are not there on the GPU",
                first + width,
                rows.len()
            )));
        }
        let name = if x.dtype() == Stored::F32 { "put_rows_f32" } else { "put_rows_bf16" };
        let [x_width, first, width_word] = [x_width, first, width].map(|number| U32(number as u32));
        self.by_row(name, rows.len(), width, &[x.argument(), rows.argument(), y.argument(), x_width, first, width_word])
    }

    /// Adds `bias [N]` to every row of `y [T, N]`, f32.
    pub fn add_bias(&self, bias: &Buffer, y: Array, width: usize) -> Result<()> {
        let bias = bias.array(0, width, Stored::F32)?;
        let rows = whole_rows("a bias", y, width)?;
        y.expect("what a bias is added to", y.len(), Stored::F32)?;
        self.by_row("add_bias", rows, width, &[bias.argument(), y.argument(), U32(width as u32)])
    }

    fn by_row(&self, name: &'static str, rows: usize, width: usize, arguments: &[Argument]) -> Result<()> {
        let kernel = self.kernel(Source::Rows, name)?;
        // SAFETY: the callers have checked that the arrays hold `rows` rows of `width` numbers, and that the rows they name are there.
        unsafe { self.launch(kernel, (rows, 1), threads_for(width), 0, arguments) }
    }

    /// `y [T, D] = x / sqrt(mean(x^2) + eps) * weight` in f32, stored as `y` is.
    pub fn rms_norm(&self, x: Array, weight: &Buffer, eps: f64, y: Array) -> Result<()> {
        let name = if y.dtype() == Stored::F32 { "rms_norm_f32" } else { "rms_norm_bf16" };
        self.norm(name, x, weight, eps, y)
    }

    /// As [`Device::rms_norm`], added to `y`, which is f32.
    pub fn rms_norm_add(&self, x: Array, weight: &Buffer, eps: f64, y: Array) -> Result<()> {
        y.expect("what a norm is added to", y.len(), Stored::F32)?;
        self.norm("rms_norm_add", x, weight, eps, y)
    }

    fn norm(&self, name: &'static str, x: Array, weight: &Buffer, eps: f64, y: Array) -> Result<()> {
        let width = weight.bytes() / size_of::<f32>();
        let rows = whole_rows("a norm", y, width)?;
        x.expect("the input of a norm", y.len(), Stored::F32)?;
        let weight = weight.array(0, width, Stored::F32)?;
        let kernel = self.kernel(Source::Norm, name)?;
        // Wide rows have more threads, so that each keeps its numbers in registers.
        let row_threads = match width {
            0..=1024 => 32,
            1025..=4096 => 128,
            _ => NORM_THREADS,
        };
        let [rows_word, width, row_threads_word] = [rows, width, row_threads].map(|number| U32(number as u32));
        let arguments = [x.argument(), weight.argument(), y.argument(), rows_word, width, row_threads_word, F32(eps as f32)];
        let blocks = (rows.div_ceil(NORM_THREADS / row_threads), 1);
        // SAFETY: `x` and `y` hold `rows` rows of `width` numbers, the weight one; the kernel divides its threads by `row_threads`.
        unsafe { self.launch(kernel, blocks, NORM_THREADS as u32, 0, &arguments) }
    }

    /// `y [T, F] = activation(gate) * up` of `gate_up [T, 2F]`, to which `bias [2F]` is added first where there is one. Both in one format.
    pub fn gated(&self, gate_up: Array, bias: Option<Array>, activation: Activation, y: Array, width: usize) -> Result<()> {
        let rows = whole_rows("a gated activation", y, width)?;
        gate_up.expect("gate and up", 2 * y.len(), y.dtype())?;
        let bias = match bias {
            Some(bias) => bias.expect("the bias of gate and up", 2 * width, Stored::F32).map(|()| bias.argument())?,
            None => Pointer(0),
        };
        let name = match (activation, y.dtype()) {
            (Activation::Silu, Stored::F32) => "silu_f32",
            (Activation::Silu, Stored::Bf16) => "silu_bf16",
            (Activation::GeluTanh, Stored::F32) => "gelu_tanh_f32",
            (Activation::GeluTanh, Stored::Bf16) => "gelu_tanh_bf16",
            (Activation::Sigmoid, Stored::F32) => "sigmoid_f32",
            (Activation::Sigmoid, Stored::Bf16) => "sigmoid_bf16",
            (Activation::ClampedSwiglu(_), Stored::F32) => "clamped_swiglu_f32",
            (Activation::ClampedSwiglu(_), Stored::Bf16) => "clamped_swiglu_bf16",
        };
        let kernel = self.kernel(Source::Gated, name)?;
        // Columns of a thread, as gated.cu has them.
        let columns = [8, 2, 1].into_iter().find(|columns| width.is_multiple_of(*columns)).unwrap_or(1);
        let threads = width / columns;
        let block = threads_for(threads);
        let blocks = (rows, threads.div_ceil(block as usize));
        let mut arguments = vec![gate_up.argument(), bias, y.argument(), U32(width as u32)];
        if let Activation::ClampedSwiglu(ClampedSwiglu { alpha, limit }) = activation {
            arguments.extend([F32(alpha), F32(limit)]);
        }
        // SAFETY: `gate_up` holds `rows` rows of `2 width` numbers, `y` of `width`, the bias `2 width` or nothing.
        unsafe { self.launch(kernel, blocks, block, 0, &arguments) }
    }

    /// Makes of the projections what the attention wants, queries, keys and values `qkv [T, C]`: with bias and norms where there are some,
    /// queries and keys turned by the rotary embedding. In their place, or without the gates between them elsewhere.
    pub fn prepare_attention(
        &self,
        projected: Array,
        qkv: Array,
        options: &PrepareOptions,
        plan: &AttentionPlan,
        positions: Indices,
    ) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *options.shape;
        let columns = options.shape.columns();
        let tokens = whole_rows("an attention", qkv, columns)?;
        let gates = if options.gated { heads * head_dim } else { 0 };
        projected.expect("projections of queries, keys and values", tokens * (columns + gates), qkv.dtype())?;
        if !options.gated && projected.address != qkv.address {
            return Err(Error::new("queries, keys and values without gates are prepared in their place"));
        }
        let RotaryTables { cos, sin, pairs, max_positions, style } = options.rotary;
        if positions.len() != tokens || 2 * pairs > head_dim || (*pairs > 0 && positions.end as usize > *max_positions) {
            return Err(Error::new(format!(
                "{} positions up to {} do not fit {tokens} tokens and tables of {max_positions} positions",
                positions.len(),
                positions.end
            )));
        }
        let (cos, sin) = (cos.array(0, pairs * max_positions, Stored::F32)?, sin.array(0, pairs * max_positions, Stored::F32)?);
        let (q_norm, k_norm, eps, whole_norms) = match options.norms {
            Some((q, k, eps)) => {
                let whole = q.bytes() != head_dim * size_of::<f32>();
                let (q_len, k_len) = if whole { (heads * head_dim, kv_heads * head_dim) } else { (head_dim, head_dim) };
                (optional(Some(q), q_len)?, optional(Some(k), k_len)?, eps, whole)
            }
            None => (Pointer(0), Pointer(0), 0.0, false),
        };
        let bias = optional(options.bias, columns + gates)?;
        let (growth, original_positions) = options.growth.unwrap_or((0.0, 0));
        let name = if qkv.dtype() == Stored::F32 { "prepare_f32" } else { "prepare_bf16" };
        let kernel = self.kernel(plan.source(options.shape)?, name)?;
        let arguments = [
            projected.argument(),
            qkv.argument(),
            positions.argument(),
            U32(tokens as u32),
            bias,
            q_norm,
            k_norm,
            cos.argument(),
            sin.argument(),
            F32(eps as f32),
            U32(u32::from(whole_norms)),
            U32(*pairs as u32),
            U32(u32::from(*style == RotaryStyle::Interleaved)),
            U32(heads as u32),
            U32(kv_heads as u32),
            U32(u32::from(options.gated)),
            F32(growth),
            U32(u32::try_from(original_positions).unwrap_or(u32::MAX)),
        ];
        // Where nothing is added to values, they stay as they are.
        let n_heads = heads + kv_heads + if options.bias.is_some() || options.gated { kv_heads } else { 0 };
        let blocks = if whole_norms { tokens } else { (tokens * n_heads).div_ceil(heads_at_once(head_dim)) };
        // SAFETY: `projected` and `qkv` hold `tokens` rows of their columns; the positions lie within the tables; norms and bias are as long
        // as was checked.
        unsafe { self.launch(kernel, (blocks, 1), PREPARING_THREADS as u32, 0, &arguments) }
    }

    /// What the gates, where `projected` had some, let through of what the heads read: `y [T, heads * head_dim] *= sigmoid(gates)`.
    pub fn open_gates(&self, projected: Array, options: &PrepareOptions, plan: &AttentionPlan, y: Array) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *options.shape;
        let tokens = whole_rows("gates", y, heads * head_dim)?;
        let columns = options.shape.columns() + heads * head_dim;
        projected.expect("projections with gates", tokens * columns, y.dtype())?;
        let name = if y.dtype() == Stored::F32 { "open_gates_f32" } else { "open_gates_bf16" };
        let kernel = self.kernel(plan.source(options.shape)?, name)?;
        let bias = optional(options.bias, columns)?;
        let arguments = [projected.argument(), bias, y.argument(), U32(heads as u32), U32(kv_heads as u32)];
        // SAFETY: `projected` holds `tokens` rows of `columns`, `y` of all query heads, the bias one row or nothing.
        unsafe { self.launch(kernel, (tokens, 1), threads_for(heads * head_dim), 0, &arguments) }
    }

    /// What the heads read: `y [T, heads * head_dim]` of prepared `qkv [T, C]`, both in one format; of `kept [P, 2 kv_heads * head_dim]`, where
    /// the plan is made over pages of that. With `sinks [heads]`, a logit for each head that takes a share of every softmax.
    #[expect(clippy::too_many_arguments, reason = "the parts of one operation, named where it is called")]
    pub fn attention(
        &self,
        qkv: Array,
        kept: Option<Array>,
        plan: &AttentionPlan,
        tiles: Indices,
        ranges: Indices,
        shape: &AttentionShape,
        sinks: Option<&Buffer>,
        y: Array,
    ) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
        let tokens = whole_rows("an attention", y, heads * head_dim)?;
        qkv.expect("queries, keys and values", tokens * shape.columns(), y.dtype())?;
        let kv_columns = 2 * kv_heads * head_dim;
        let (kv, kv_columns, kv_rows) = match kept {
            Some(kept) => {
                kept.expect("kept keys and values", kept.len(), y.dtype())?;
                (kept, kv_columns, whole_rows("kept keys and values", kept, kv_columns)?)
            }
            None => {
                let first = heads * head_dim;
                let kv = qkv.part(first.min(qkv.len()), qkv.len().saturating_sub(first))?;
                (kv, shape.columns(), tokens)
            }
        };
        if plan.kv_rows > kv_rows {
            return Err(Error::new(format!("an attention to {} rows has {kv_rows} keys", plan.kv_rows)));
        }
        let is_whole = tokens == plan.tokens && tiles.len() == plan.tiles.len() && ranges.len() == plan.ranges.len();
        if !is_whole || plan.queries != plan.blocking.queries(shape, y.dtype()) {
            return Err(Error::new("the attention was planned for another batch"));
        }
        let (name, threads) = match y.dtype() {
            Stored::F32 => ("attention_f32", 256),
            Stored::Bf16 => ("attention_bf16", 32 * plan.blocking.warps),
        };
        let kernel = self.kernel(plan.source(shape)?, name)?;
        let [n_heads, n_kv_heads, scale, window, softcap] = arguments_of(shape);
        let arguments = [
            qkv.argument(),
            kv.argument(),
            U32(kv_columns as u32),
            tiles.argument(),
            ranges.argument(),
            optional(sinks, heads)?,
            y.argument(),
            n_heads,
            n_kv_heads,
            scale,
            window,
            softcap,
        ];
        let blocks = (plan.n_tiles() * heads, 1);
        let shared_bytes = plan.blocking.shared_bytes(head_dim, y.dtype());
        // SAFETY: the plan's tiles lie within `tokens` rows and its ranges within `kv_rows`, as it was made for them and as was checked.
        unsafe { self.launch(kernel, blocks, threads, shared_bytes, &arguments) }
    }

    /// What the model believed about `targets [N]`, from `logits [N, V]` f32; `statistics` takes [`STATISTICS_WORDS`] words a token,
    /// `sums` [`SUMS_WORDS`], `top_logits` the `top_k` largest logits of each.
    fn token_statistics(&self, head: &HeadArrays, vocabulary: usize, top_k: usize, softcap: Option<f32>) -> Result<()> {
        let HeadArrays { logits, targets, statistics, sums, top_logits } = *head;
        let n = targets.len();
        logits.expect("logits", n * vocabulary, Stored::F32)?;
        top_logits.expect("the largest logits", n * top_k, Stored::F32)?;
        sums.expect("sums of rows", n * SUMS_WORDS, Stored::F32)?;
        if targets.end as usize > vocabulary || statistics.len() != n * STATISTICS_WORDS {
            return Err(Error::new("targets lie outside the vocabulary, or their statistics have no room"));
        }
        let shared_bytes = self.head_shared_bytes(vocabulary, top_k).ok_or_else(|| {
            Error::new(format!("{} has no room for the {top_k} largest of {vocabulary} logits", self.name()))
                .cure("Leave out --device cuda: the CPU takes its place.")
        })?;
        let name = if vocabulary.is_multiple_of(4) { "sum_rows_4" } else { "sum_rows_1" };
        let kernel = self.kernel(Source::Head, name)?;
        let (vocabulary, top_k) = (U32(vocabulary as u32), U32(top_k as u32));
        let arguments = [
            logits.argument(),
            targets.argument(),
            sums.argument(),
            top_logits.argument(),
            vocabulary,
            top_k,
            F32(softcap.unwrap_or(0.0)),
        ];
        // SAFETY: the logits hold a row for each target, which lies within it; sums and largest logits have room for all.
        unsafe { self.launch(kernel, (n, 1), HEAD_THREADS as u32, shared_bytes, &arguments)? };
        let kernel = self.kernel(Source::Head, "finish")?;
        let arguments = [sums.argument(), top_logits.argument(), statistics.argument(), U32(n as u32), top_k];
        // SAFETY: as above; the statistics have room for all.
        unsafe { self.launch(kernel, (n.div_ceil(8), 1), 256, 0, &arguments) }
    }

    /// The first of the largest of each row of `logits [N, V]` f32: `ids [N]` words, `u32::MAX` where a logit is no number or the largest not
    /// finite.
    pub fn largest_of_rows(&self, logits: Array, ids: Array, vocabulary: usize) -> Result<()> {
        let rows = whole_rows("a choice of the largest", logits, vocabulary)?;
        logits.expect("logits", logits.len(), Stored::F32)?;
        ids.expect("ids of the largest", rows, Stored::F32)?;
        let kernel = self.kernel(Source::Largest, "largest_of_rows")?;
        // SAFETY: the logits are whole rows, and there is a word for each.
        unsafe {
            self.launch(kernel, (rows, 1), HEAD_THREADS as u32, 0, &[logits.argument(), ids.argument(), U32(vocabulary as u32)])
        }
    }

    /// A token of each row of `logits [N, V]` f32, by shares that are `exp((logit - largest) scale)` but for a common factor; `largest [N]` as
    /// [`Device::largest_of_rows`] gives it, `randoms [2 N]` words of f64 in 0..1, `ids [N]` words, `u32::MAX` where `largest` is.
    #[expect(clippy::too_many_arguments, reason = "the parts of one operation, named where it is called")]
    pub fn draw(
        &self,
        logits: Array,
        largest: Indices,
        randoms: Indices,
        scale: f32,
        room: Array,
        ids: Array,
        vocabulary: usize,
    ) -> Result<()> {
        let (n, blocks) = (whole_rows("a draw", logits, vocabulary)?, vocabulary.div_ceil(DRAW_BLOCK));
        logits.expect("logits", logits.len(), Stored::F32)?;
        ids.expect("ids of what is drawn", n, Stored::F32)?;
        room.expect("sums of shares", n * draw_words(vocabulary), Stored::F32)?;
        if largest.len() != n || randoms.len() != 2 * n || !(randoms.address.is_multiple_of(8) && room.address.is_multiple_of(8))
        {
            return Err(Error::new(format!("{n} draws want as many largest logits and random numbers")));
        }
        let [logits, largest, room, randoms, ids] =
            [logits.argument(), largest.argument(), room.argument(), randoms.argument(), ids.argument()];
        let (vocabulary, scale) = (U32(vocabulary as u32), F32(scale));
        let kernel = self.kernel(Source::Draw, "sum_shares")?;
        // SAFETY: there is a sum for each block of each row, and the ids of the largest lie within the rows or are told apart.
        unsafe { self.launch(kernel, (blocks, n), DRAW_THREADS, 0, &[logits, largest, room, vocabulary, scale])? };
        let kernel = self.kernel(Source::Draw, "draw")?;
        // SAFETY: as above; there is a random number and a place for an id for each row.
        unsafe { self.launch(kernel, (n, 1), DRAW_THREADS, 0, &[logits, largest, room, randoms, ids, vocabulary, scale]) }
    }

    /// Shared memory for the `top_k` largest of a row of logits; `None` where there is not enough.
    fn head_shared_bytes(&self, vocabulary: usize, top_k: usize) -> Option<usize> {
        let vector = if vocabulary.is_multiple_of(4) { 4 } else { 1 };
        let of_group = HEAD_THREADS / HEAD_GROUPS * vector * vocabulary.div_ceil(vector * HEAD_THREADS);
        let bytes = 4 * (top_k + top_k.checked_sub(1)? * of_group);
        // The kernel declares some kilobytes itself.
        (top_k <= HEAD_GROUPS && bytes + (8 << 10) <= self.shared_bytes as usize).then_some(bytes)
    }

    /// Can the device find the `top_k` largest of a row of logits?
    pub fn can_list(&self, vocabulary: usize, top_k: usize) -> bool {
        self.head_shared_bytes(vocabulary, top_k.min(vocabulary)).is_some()
    }
}

/// What statistics.cu reads and writes.
#[derive(Clone, Copy)]
struct HeadArrays<'a> {
    logits: Array<'a>,
    targets: Indices<'a>,
    statistics: Indices<'a>,
    sums: Array<'a>,
    top_logits: Array<'a>,
}

/// What the head works in: room for the logits of some rows at a time, at least one.
pub struct HeadRoom<'a> {
    /// Room for the logits of some rows, f32.
    pub logits: Array<'a>,
    /// Room for what statistics.cu sums for these rows, [`SUMS_WORDS`] words each.
    pub sums: Array<'a>,
    /// The largest logits of these rows, or of all rows where there is room for `[N, top_k]`: they are then kept.
    pub top_logits: Array<'a>,
}

impl Device {
    /// What the model believed about `targets [N]` at `hidden [N, D]`, in the head's format; `statistics` takes [`STATISTICS_WORDS`] words a
    /// token.
    pub fn head_statistics(
        &'static self,
        hidden: Array,
        head_vd: &Weight,
        targets: Indices,
        statistics: Indices,
        room: &HeadRoom,
        options: &HeadOptions,
    ) -> Result<()> {
        let (vocabulary, width) = (head_vd.out_features(), head_vd.in_features());
        let (top_k, n_all) = (options.top_k.min(vocabulary), targets.len());
        let chunk = (room.logits.len() / vocabulary.max(1)).min(room.sums.len() / SUMS_WORDS);
        if chunk == 0 && n_all > 0 {
            return Err(Error::new("there is no room for a row of logits on the GPU"));
        }
        let keeps_top = room.top_logits.len() == n_all * top_k;
        for begin in (0..n_all).step_by(chunk.max(1)) {
            let n = chunk.min(n_all - begin);
            let logits = room.logits.part(0, n * vocabulary)?;
            self.multiply(hidden.part(begin * width, n * width)?, head_vd, logits, false, Rows::Together)?;
            let head = HeadArrays {
                logits,
                targets: targets.part(begin, n)?,
                statistics: statistics.part(begin * STATISTICS_WORDS, n * STATISTICS_WORDS)?,
                sums: room.sums.part(0, n * SUMS_WORDS)?,
                top_logits: room.top_logits.part(if keeps_top { begin * top_k } else { 0 }, n * top_k)?,
            };
            self.token_statistics(&head, vocabulary, top_k, options.softcap)?;
        }
        Ok(())
    }
}

/// Rows of logits that are held at a time: about 512 MiB of them.
pub fn head_chunk(vocabulary: usize) -> usize {
    ((512 << 20) / (4 * vocabulary.max(1))).clamp(128, 8192) / 128 * 128
}

/// draw.cu: `BLOCK`, `THREADS`.
const DRAW_BLOCK: usize = 512;
const DRAW_THREADS: u32 = 128;

/// Words that [`Device::draw`] works in for each row.
pub fn draw_words(vocabulary: usize) -> usize {
    2 * vocabulary.div_ceil(DRAW_BLOCK)
}

/// statistics.cu: `THREADS`, which largest.cu has, too, and `GROUPS`.
const HEAD_THREADS: usize = 512;
const HEAD_GROUPS: usize = 256;
/// Words of `TokenStatistics` in statistics.cu.
pub const STATISTICS_WORDS: usize = 9 + 2 * NEXT_CHOICES;
/// Words of `RowSums` in statistics.cu.
pub const SUMS_WORDS: usize = 14 + NEXT_CHOICES;

/// From the words that statistics.cu wrote for one token.
pub fn statistics_of_words(words: &[u32; STATISTICS_WORDS]) -> TokenStatistics {
    let float = |i: usize| f32::from_bits(words[i]);
    TokenStatistics {
        logprob: float(0),
        entropy: float(1),
        entropy_topk: float(2),
        rank: words[3],
        tail: float(4),
        varentropy: float(5),
        grad: float(6),
        top_id: words[7],
        top_logprob: float(8),
        next: std::array::from_fn(|i| Choice { id: words[9 + i], logprob: float(9 + NEXT_CHOICES + i) }),
    }
}

/// Rotary tables on the device.
pub struct RotaryTables {
    cos: Buffer,
    sin: Buffer,
    pairs: usize,
    max_positions: usize,
    style: RotaryStyle,
}

impl RotaryTables {
    /// Puts the tables on the device.
    pub fn new(device: &'static Device, rotary: &Rotary) -> Result<RotaryTables> {
        Ok(RotaryTables {
            cos: device.upload(&rotary.cos, Stored::F32)?,
            sin: device.upload(&rotary.sin, Stored::F32)?,
            pairs: rotary.pairs,
            max_positions: rotary.max_positions(),
            style: rotary.style,
        })
    }
}

/// What happens to queries, keys and values between their projection and the attention.
pub struct PrepareOptions<'a> {
    /// The heads.
    pub shape: &'a AttentionShape,
    /// The tables of the rotary embedding.
    pub rotary: &'a RotaryTables,
    /// A bias for every column of the projections.
    pub bias: Option<&'a Buffer>,
    /// The weights of the norms of queries and of keys, `[head_dim]` each or, of all heads at once, as wide as these; and their
    /// epsilon.
    pub norms: Option<(&'a Buffer, &'a Buffer, f64)>,
    /// Behind each query head of the projections stand as many gates.
    pub gated: bool,
    /// `(b, n)`: the queries at position `p` are multiplied by `1 + b ln(1 + floor(p / n))`.
    pub growth: Option<(f32, usize)>,
}

/// Which block computes what: the batch's segments cut into tiles of `queries` tokens, and what each segment sees.
pub struct AttentionPlan {
    tokens: usize,
    /// One more than the last row of keys.
    kv_rows: usize,
    queries: usize,
    blocking: Blocking,
    /// `Tile` of attention.cu, five words each; the longest work first.
    pub tiles: Vec<u32>,
    /// `Range` of attention.cu, three words each.
    pub ranges: Vec<u32>,
}

/// Tokens of a batch that lie side by side, and what they see.
pub(super) struct View {
    /// Rows of the batch.
    pub tokens: Range<usize>,
    /// The position of the first of these tokens in its sequence.
    pub position: usize,
    /// Rows of keys, in the order of their positions, from 0 on.
    pub seen: Vec<Range<usize>>,
}

/// How a block of attention.cu is cut: so many warps, each on so many times 16 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocking {
    warps: u32,
    row_tiles: u32,
}

impl AttentionPlan {
    pub(super) const TILE_WORDS: usize = 5;
    pub(super) const RANGE_WORDS: usize = 3;

    /// `segments` have been checked by [`positions`](crate::kernels::attention::positions), and hold `tokens` tokens; a block of the device
    /// may have `shared_bytes` of shared memory.
    pub fn new(segments: &[Segment], tokens: usize, shape: &AttentionShape, dtype: Stored, shared_bytes: usize) -> AttentionPlan {
        let view = |segment: &Segment| {
            let seen: Vec<_> = segment.context.iter().chain([&segment.tokens]).cloned().collect();
            let position = segment.context.iter().map(|range| range.len()).sum();
            View { tokens: segment.tokens.clone(), position, seen }
        };
        AttentionPlan::of(segments.iter().map(view), tokens, shape, dtype, shared_bytes)
    }

    /// Plans the attention of `views` of a batch of `tokens`, whose rows need not all be in one.
    pub(super) fn of(
        views: impl Iterator<Item = View>,
        tokens: usize,
        shape: &AttentionShape,
        dtype: Stored,
        shared_bytes: usize,
    ) -> AttentionPlan {
        let views: Vec<View> = views.filter(|view| !view.tokens.is_empty()).collect();
        // Large tiles read each key once for 128 tokens, but stand idle where segments are short.
        let lens = || views.iter().map(|view| view.tokens.len());
        let (all, long): (usize, usize) = (lens().sum(), lens().filter(|&len| len > 96).sum());
        let small = Blocking { warps: 4, row_tiles: 1 };
        let large = [Blocking { warps: 4, row_tiles: 2 }, Blocking { warps: 8, row_tiles: 1 }];
        let large =
            large.into_iter().find(|large| shape.head_dim <= 128 && large.shared_bytes(shape.head_dim, dtype) <= shared_bytes);
        let blocking = large.filter(|_| long > 0 && 2 * long >= all).unwrap_or(small);
        let queries = blocking.queries(shape, dtype);
        let mut tiles: Vec<(usize, [u32; AttentionPlan::TILE_WORDS])> = Vec::new();
        let (mut ranges, mut kv_rows) = (Vec::new(), 0);
        for View { tokens, position, seen } in &views {
            let first_range = ranges.len() / AttentionPlan::RANGE_WORDS;
            let mut of_range = 0;
            for range in seen.iter().filter(|range| !range.is_empty()) {
                ranges.extend([range.start, range.len(), of_range].map(|number| number as u32));
                of_range += range.len();
                kv_rows = kv_rows.max(range.end);
            }
            let end_range = ranges.len() / AttentionPlan::RANGE_WORDS;
            for begin in (0..tokens.len()).step_by(queries) {
                let rows = queries.min(tokens.len() - begin);
                let tile = [tokens.start + begin, rows, position + begin, first_range, end_range].map(|number| number as u32);
                tiles.push((position + begin + rows, tile));
            }
        }
        tiles.sort_by_key(|&(keys, _)| std::cmp::Reverse(keys));
        let tiles = tiles.into_iter().flat_map(|(_, tile)| tile).collect();
        AttentionPlan { tokens, kv_rows, queries, blocking, tiles, ranges }
    }

    fn n_tiles(&self) -> usize {
        self.tiles.len() / AttentionPlan::TILE_WORDS
    }

    fn source(&self, shape: &AttentionShape) -> Result<Source> {
        let Blocking { warps, row_tiles } = self.blocking;
        match shape.head_dim {
            head_dim @ 1..=256 => Ok(Source::Attention { head_dim: head_dim as u32, warps, row_tiles }),
            wide => Err(Error::new(format!("the GPU's attention takes heads of up to 256 elements, not {wide}"))
                .cure("Leave out --device cuda: the CPU takes its place.")),
        }
    }
}

impl Blocking {
    /// Tokens of a tile, as attention.cu has them.
    fn queries(self, shape: &AttentionShape, dtype: Stored) -> usize {
        match dtype {
            Stored::Bf16 => (16 * self.warps * self.row_tiles) as usize,
            Stored::F32 if shape.head_dim > 128 => 32,
            Stored::F32 => 64,
        }
    }

    /// Dynamic shared memory of the two kernels in attention.cu.
    fn shared_bytes(self, head_dim: usize, dtype: Stored) -> usize {
        let is_wide = head_dim > 128;
        match dtype {
            Stored::Bf16 => {
                let row = 2 * (head_dim.next_multiple_of(16) + 8);
                let keys = if is_wide { 32 } else { 64 };
                // Two buffers of keys and values; queries beside them only where registers do not take them in.
                let keeps_queries = head_dim * self.row_tiles as usize <= 128;
                let queries = if keeps_queries { 0 } else { (16 * self.warps * self.row_tiles) as usize };
                (queries + 4 * keys) * row
            }
            Stored::F32 => {
                let (queries, keys) = if is_wide { (32, 16) } else { (64, 32) };
                4 * ((queries + 2 * keys) * (head_dim + 1) + queries * (keys + 1))
            }
        }
    }
}

/// attention.cu: `HEADS_AT_ONCE`.
fn heads_at_once(head_dim: usize) -> usize {
    let own = [8, 2, 1].into_iter().find(|&own| head_dim.is_multiple_of(own)).unwrap_or(1);
    let shared_by = [4, 8, 16].into_iter().find(|shared_by| head_dim <= shared_by * own).unwrap_or(32);
    PREPARING_THREADS / shared_by
}

/// What every kernel of attention is told of a shape: heads, heads of keys and values, scale, window, cap.
pub(super) fn arguments_of(shape: &AttentionShape) -> [Argument; 5] {
    let AttentionShape { heads, kv_heads, scale, window, softcap, .. } = *shape;
    [
        U32(heads as u32),
        U32(kv_heads as u32),
        F32(scale),
        U32(window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX))),
        F32(softcap.unwrap_or(0.0)),
    ]
}

/// The device's `f32` numbers, or a null pointer.
pub(super) fn optional(buffer: Option<&Buffer>, len: usize) -> Result<Argument> {
    Ok(match buffer {
        Some(buffer) => buffer.array(0, len, Stored::F32)?.argument(),
        None => Pointer(0),
    })
}

/// Rows of `width` that `y` is made of.
pub(super) fn whole_rows(what: &str, y: Array, width: usize) -> Result<usize> {
    if width == 0 || !y.len().is_multiple_of(width) || u32::try_from(width).is_err() {
        return Err(Error::new(format!("{} numbers are no rows of {width}, as {what} wants them", y.len())));
    }
    Ok(y.len() / width)
}

/// An error unless all `rows` are there.
pub(super) fn check_rows(rows: Indices, x: Array, width: usize) -> Result<()> {
    let there = whole_rows("a choice of rows", x, width)?;
    if rows.end as usize > there {
        return Err(Error::new(format!("row {} was asked of {there} on the GPU", rows.end - 1)));
    }
    Ok(())
}

/// Enough for a row, in whole warps.
pub(super) fn threads_for(width: usize) -> u32 {
    width.next_multiple_of(32).clamp(32, ROW_THREADS) as u32
}
