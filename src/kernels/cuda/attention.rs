//! Attention on the device: the preparation of queries, keys and values, and the plan of which block computes what.

use std::ops::Range;

use super::array::Argument::{self, F32, Pointer, U32};
use super::array::{Array, Indices};
use super::compile::Source;
use super::device::{Buffer, Device};
use super::operations::{optional, threads_for, whole_rows};
use crate::error::{Error, Result};
use crate::kernels::attention::AttentionShape;
use crate::kernels::rotary::{Rotary, RotaryStyle};
use crate::kernels::{Segment, Stored};

/// `PREPARING` in attention.cu.
const PREPARING_THREADS: usize = 256;

impl Device {
    /// Prepares the projections for attention: adds biases and applies norms if there are any, and rotates queries and keys. Writes
    /// `qkv [T, C]`, in place or, if there are gates between the projections, to an array without the gates.
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
        // Values without a bias stay where they are.
        let n_heads = heads + kv_heads + if options.bias.is_some() || options.gated { kv_heads } else { 0 };
        let blocks = if whole_norms { tokens } else { (tokens * n_heads).div_ceil(heads_at_once(head_dim)) };
        // SAFETY: `projected` and `qkv` hold `tokens` rows of their columns; the positions lie within the tables; norms and bias are as long
        // as was checked.
        unsafe { self.launch(kernel, (blocks, 1), PREPARING_THREADS as u32, 0, &arguments) }
    }

    /// Applies the gates of `projected`, if there are any, to the output of the heads: `y [T, heads * head_dim] *= sigmoid(gates)`.
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

    /// Attention: `y [T, heads * head_dim]` from prepared `qkv [T, C]`, in the same format; or from `kept [P, 2 kv_heads * head_dim]` if the
    /// plan was made for its pages. `sinks [heads]` are one logit per head that takes a share of every softmax.
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
    /// Uploads the tables.
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

/// The options for preparing queries, keys and values between their projection and the attention.
pub struct PrepareOptions<'a> {
    /// The heads.
    pub shape: &'a AttentionShape,
    /// The tables of the rotary embedding.
    pub rotary: &'a RotaryTables,
    /// A bias for every column of the projections.
    pub bias: Option<&'a Buffer>,
    /// The weights of the norms of queries and of keys, `[head_dim]` each or, for norms over all heads at once, as wide as all heads; and their
    /// epsilon.
    pub norms: Option<(&'a Buffer, &'a Buffer, f64)>,
    /// Whether each query head of the projections is followed by as many gates.
    pub gated: bool,
    /// `(b, n)`: the queries at position `p` are multiplied by `1 + b ln(1 + floor(p / n))`.
    pub growth: Option<(f32, usize)>,
}

/// Which block computes what: the batch's segments split into tiles of `queries` tokens, and the keys that each segment sees.
pub struct AttentionPlan {
    tokens: usize,
    /// One more than the last row of keys.
    kv_rows: usize,
    queries: usize,
    blocking: Blocking,
    /// The `Tile`s of attention.cu, five words each, longest work first.
    pub tiles: Vec<u32>,
    /// The `Range`s of attention.cu, three words each.
    pub ranges: Vec<u32>,
}

/// Contiguous tokens of a batch, and the keys that they see.
pub(super) struct View {
    /// Rows of the batch.
    pub tokens: Range<usize>,
    /// The position of the first of these tokens in its sequence.
    pub position: usize,
    /// The rows of the keys, in the order of their positions from 0 on.
    pub seen: Vec<Range<usize>>,
}

/// The shape of a block of attention.cu: the number of warps, and the tiles of 16 tokens per warp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocking {
    warps: u32,
    row_tiles: u32,
}

impl AttentionPlan {
    pub(super) const TILE_WORDS: usize = 5;
    pub(super) const RANGE_WORDS: usize = 3;

    /// Plans the attention of `segments` with `tokens` tokens, which [`positions`](crate::kernels::attention::positions) has checked, for a
    /// device with `shared_bytes` of shared memory per block.
    pub fn new(segments: &[Segment], tokens: usize, shape: &AttentionShape, dtype: Stored, shared_bytes: usize) -> AttentionPlan {
        let view = |segment: &Segment| {
            let seen: Vec<_> = segment.context.iter().chain([&segment.tokens]).cloned().collect();
            let position = segment.context.iter().map(|range| range.len()).sum();
            View { tokens: segment.tokens.clone(), position, seen }
        };
        AttentionPlan::of(segments.iter().map(view), tokens, shape, dtype, shared_bytes)
    }

    /// Plans the attention of `views` of a batch of `tokens` tokens; rows need not be in any view.
    pub(super) fn of(
        views: impl Iterator<Item = View>,
        tokens: usize,
        shape: &AttentionShape,
        dtype: Stored,
        shared_bytes: usize,
    ) -> AttentionPlan {
        let views: Vec<View> = views.filter(|view| !view.tokens.is_empty()).collect();
        // Large tiles read each key once for 128 tokens, but are partly idle if segments are short.
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
    /// The tokens of a tile, as in attention.cu.
    fn queries(self, shape: &AttentionShape, dtype: Stored) -> usize {
        match dtype {
            Stored::Bf16 => (16 * self.warps * self.row_tiles) as usize,
            Stored::F32 if shape.head_dim > 128 => 32,
            Stored::F32 => 64,
        }
    }

    /// The dynamic shared memory of the two kernels in attention.cu.
    fn shared_bytes(self, head_dim: usize, dtype: Stored) -> usize {
        let is_wide = head_dim > 128;
        match dtype {
            Stored::Bf16 => {
                let row = 2 * (head_dim.next_multiple_of(16) + 8);
                let keys = if is_wide { 32 } else { 64 };
                // Two buffers of keys and values; also the queries if they do not fit into registers.
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

/// `HEADS_AT_ONCE` in attention.cu.
fn heads_at_once(head_dim: usize) -> usize {
    let own = [8, 2, 1].into_iter().find(|&own| head_dim.is_multiple_of(own)).unwrap_or(1);
    let shared_by = [4, 8, 16].into_iter().find(|shared_by| head_dim <= shared_by * own).unwrap_or(32);
    PREPARING_THREADS / shared_by
}

/// The arguments that describe a shape to every attention kernel: heads, heads of keys and values, scale, window, softcap.
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
