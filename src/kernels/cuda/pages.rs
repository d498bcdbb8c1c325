//! Keys and values of sequences that are being written, kept on the device by pages, and the attention of the sequences' newest tokens.
//!
//! What a step computes of a token does not depend, to the bit, on what else it computes. A prompt's tokens but the last go through
//! attention.cu, which takes keys by 64 or fewer positions from multiples of that on, as pages have them; the last token of each stretch goes
//! through last.cu, whether it is a prompt's or was written. So a prompt is cut the same way wherever its beginning was computed, as long as
//! pages are shared that hold no other prompt's last token.

use super::array::Argument::{F32, U32};
use super::array::{Array, Indices};
use super::compile::Source;
use super::device::{Buffer, Device};
use super::operations::{AttentionPlan, View, optional, whole_rows};
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::attention::{AttentionShape, Stretch, check_pages};

/// Positions in a page of the device; last.cu: `PAGE`. The keys that attention.cu takes at a time divide it.
pub const DEVICE_PAGE: usize = 64;
/// Positions of a part, and threads of the block that computes it; last.cu: `KEYS`.
const PART: usize = 256;
/// Words of `Query`, `Part` and `Mass` in last.cu.
const QUERY_WORDS: usize = 5;
const PART_WORDS: usize = 2;
const MASS_WORDS: usize = 2;
/// Query heads at most that one block computes.
const MOST_HEADS: usize = 8;

/// Keys and values of all layers: of each `[pages * DEVICE_PAGE, 2 kv_heads * head_dim]`, a position's keys of all heads and then its values.
pub struct PagedKeys {
    buffer: Buffer,
    n_pages: usize,
    columns: usize,
    dtype: Stored,
}

impl PagedKeys {
    pub fn new(device: &'static Device, shape: &AttentionShape, layers: usize, n_pages: usize, dtype: Stored) -> Result<PagedKeys> {
        let buffer = device.allocate(n_pages * PagedKeys::page_bytes(shape, layers, dtype))?;
        Ok(PagedKeys { buffer, n_pages, columns: kept_columns(shape), dtype })
    }

    /// What a page takes in so many layers.
    pub fn page_bytes(shape: &AttentionShape, layers: usize, dtype: Stored) -> usize {
        layers * DEVICE_PAGE * kept_columns(shape) * dtype.size_in_bytes() as usize
    }

    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    pub fn layer(&self, index: usize) -> Result<Array<'_>> {
        let len = self.n_pages * DEVICE_PAGE * self.columns;
        self.buffer.array(index * len * self.dtype.size_in_bytes() as usize, len, self.dtype)
    }
}

fn kept_columns(shape: &AttentionShape) -> usize {
    2 * shape.kv_heads * shape.head_dim
}

/// What the attention of one step computes.
pub struct StepPlan {
    tokens: usize,
    kv_rows: usize,
    /// Of all tokens but the last of each stretch.
    pub before: AttentionPlan,
    /// The row of each token in the cache.
    pub rows: Vec<u32>,
    /// `Query` of last.cu: the last token of each stretch, and the rows of the batch that hold no token.
    pub queries: Vec<u32>,
    /// `Part` of last.cu.
    pub parts: Vec<u32>,
    /// Of all stretches, as far as they are in use.
    pub pages: Vec<u32>,
}

/// A plan's lists on the device.
pub struct StepLists<'a> {
    pub tiles: Indices<'a>,
    pub ranges: Indices<'a>,
    pub rows: Indices<'a>,
    pub queries: Indices<'a>,
    pub parts: Indices<'a>,
    pub pages: Indices<'a>,
}

/// Where the parts of sequences are kept until they are added up.
pub struct LastRoom<'a> {
    sums: Array<'a>,
    masses: Array<'a>,
}

impl<'a> LastRoom<'a> {
    /// By `array`, room for so many f32 numbers.
    pub fn new(parts: usize, shape: &AttentionShape, array: impl Fn(usize) -> Result<Array<'a>>) -> Result<LastRoom<'a>> {
        let [sums, masses] = LastRoom::lens(parts, shape);
        Ok(LastRoom { sums: array(sums)?, masses: array(masses)? })
    }

    /// Numbers of its arrays.
    pub fn lens(parts: usize, shape: &AttentionShape) -> [usize; 2] {
        [parts * shape.heads * shape.head_dim, parts * shape.heads * MASS_WORDS]
    }
}

impl StepPlan {
    /// Of stretches that tile the first rows of a batch of `tokens`, and a cache of `n_pages`.
    pub fn new(
        stretches: &[Stretch],
        tokens: usize,
        n_pages: usize,
        shape: &AttentionShape,
        dtype: Stored,
        shared_bytes: usize,
    ) -> Result<StepPlan> {
        check_pages(stretches, n_pages, DEVICE_PAGE)?;
        let mut plan = StepPlan {
            tokens,
            kv_rows: 0,
            before: AttentionPlan::of(stretches.iter().map(all_but_last), tokens, shape, dtype, shared_bytes),
            rows: Vec::new(),
            queries: Vec::new(),
            parts: Vec::new(),
            pages: Vec::new(),
        };
        for stretch in stretches.iter().filter(|stretch| !stretch.tokens.is_empty()) {
            plan.add(stretch);
        }
        let held = plan.rows.len();
        for row in held..tokens {
            plan.queries.extend([row as u32, 0, 0, 0, 0]);
        }
        match held <= tokens {
            true => Ok(plan),
            false => Err(Error::new(format!("stretches of {held} tokens in a batch of {tokens}"))),
        }
    }

    fn add(&mut self, stretch: &Stretch) {
        let end = stretch.position + stretch.tokens.len();
        let row_of = |position: usize| stretch.pages[position / DEVICE_PAGE] * DEVICE_PAGE + position % DEVICE_PAGE;
        self.rows.extend((stretch.position..end).map(|position| row_of(position) as u32));
        let query = (self.queries.len() / QUERY_WORDS) as u32;
        let parts = end.div_ceil(PART);
        let first_part = self.n_parts();
        let words = [stretch.tokens.end - 1, end - 1, self.pages.len(), first_part, parts];
        self.queries.extend(words.map(|number| number as u32));
        self.parts.extend((0..parts).flat_map(|part| [query, (part * PART) as u32]));
        let pages = &stretch.pages[..end.div_ceil(DEVICE_PAGE)];
        self.pages.extend(pages.iter().map(|&page| page as u32));
        let rows = pages.iter().map(|page| (page + 1) * DEVICE_PAGE).max().unwrap_or(0);
        self.kv_rows = self.kv_rows.max(rows);
    }

    pub fn n_parts(&self) -> usize {
        self.parts.len() / PART_WORDS
    }

    /// Words of its lists.
    pub fn n_words(&self) -> usize {
        let lists = [&self.before.tiles, &self.before.ranges, &self.rows, &self.queries, &self.parts, &self.pages];
        lists.into_iter().map(Vec::len).sum()
    }

    /// The most parts that so many sequences of so many positions have.
    pub fn most_parts(sequences: usize, positions: usize) -> usize {
        sequences * positions.div_ceil(PART)
    }

    /// The most of these: of so many tokens, rows without one included, in sequences of so many positions.
    pub fn most_words(tokens: usize, sequences: usize, positions: usize) -> usize {
        // A tile has one token at least, of those that are not the last of their stretch.
        let pages = sequences * positions.div_ceil(DEVICE_PAGE);
        let before = tokens * AttentionPlan::TILE_WORDS + pages * AttentionPlan::RANGE_WORDS;
        before + tokens * (1 + QUERY_WORDS) + StepPlan::most_parts(sequences, positions) * PART_WORDS + pages
    }
}

/// What attention.cu computes of a stretch: not its last token, nor what only that sees.
fn all_but_last(stretch: &Stretch) -> View {
    let tokens = stretch.tokens.start..stretch.tokens.end.saturating_sub(1).max(stretch.tokens.start);
    let n_keys = stretch.position + tokens.len();
    let seen = stretch.pages.iter().enumerate().map_while(|(i, page)| {
        let rows = n_keys.saturating_sub(i * DEVICE_PAGE).min(DEVICE_PAGE);
        (rows > 0).then_some(page * DEVICE_PAGE..page * DEVICE_PAGE + rows)
    });
    View { position: stretch.position, seen: seen.collect(), tokens }
}

impl Device {
    /// Adds the keys and values of prepared `qkv` to a layer of the cache.
    pub fn keep(&self, qkv: Array, shape: &AttentionShape, lists: &StepLists, kept: Array) -> Result<()> {
        self.put_rows(qkv, shape.columns(), shape.heads * shape.head_dim, lists.rows, kept, kept_columns(shape))
    }

    /// What the last token of each stretch reads of a layer of the cache: rows of `y [T, heads * head_dim]`, in the format of prepared
    /// `qkv [T, C]`. `sinks [heads]` f32. Rows without a token become 0, all others stay as they are.
    #[expect(clippy::too_many_arguments, reason = "the parts of one operation, named where it is called")]
    pub fn attend_to_last(
        &self,
        qkv: Array,
        kept: Array,
        plan: &StepPlan,
        lists: &StepLists,
        shape: &AttentionShape,
        sinks: Option<&Buffer>,
        room: &LastRoom,
        y: Array,
    ) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim, scale, window, softcap } = *shape;
        let dtype = y.dtype();
        let tokens = whole_rows("an attention", y, heads * head_dim)?;
        qkv.expect("queries, keys and values", tokens * shape.columns(), dtype)?;
        kept.expect("kept keys and values", kept.len(), dtype)?;
        let is_whole = tokens == plan.tokens
            && lists.queries.len() == plan.queries.len()
            && lists.parts.len() == plan.parts.len()
            && lists.pages.len() == plan.pages.len();
        if !is_whole || plan.kv_rows > whole_rows("kept keys and values", kept, kept_columns(shape))? {
            return Err(Error::new("the attention was planned for another step"));
        }
        let [sums, masses] = LastRoom::lens(plan.n_parts(), shape);
        let (sums, masses) = (room.sums.part(0, sums)?, room.masses.part(0, masses)?);
        sums.expect("sums of parts", sums.len(), Stored::F32)?;
        masses.expect("masses of parts", masses.len(), Stored::F32)?;
        let source = source(shape)?;
        let (of_part, of_parts) = match dtype {
            Stored::F32 => ("attend_to_part_f32", "sum_of_parts_f32"),
            Stored::Bf16 => ("attend_to_part_bf16", "sum_of_parts_bf16"),
        };
        let kernel = self.kernel(source, of_part)?;
        let arguments = [
            qkv.argument(),
            kept.argument(),
            lists.queries.argument(),
            lists.parts.argument(),
            lists.pages.argument(),
            sums.argument(),
            masses.argument(),
            U32(heads as u32),
            U32(kv_heads as u32),
            F32(scale),
            U32(window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX))),
            F32(softcap.unwrap_or(0.0)),
        ];
        let blocks = (plan.n_parts(), heads / group(shape));
        // SAFETY: the plan's rows lie within the batch and the cache, as was checked; sums and masses have room for all parts.
        unsafe { self.launch(kernel, blocks, PART as u32, 0, &arguments)? };
        let kernel = self.kernel(source, of_parts)?;
        let sinks = optional(sinks, heads)?;
        let arguments =
            [sums.argument(), masses.argument(), lists.queries.argument(), sinks, y.argument(), U32(heads as u32)];
        // SAFETY: as above; the sinks are one a head, or none.
        unsafe { self.launch(kernel, (plan.queries.len() / QUERY_WORDS, 1), 256, 0, &arguments) }
    }
}

/// Query heads that a block computes together: as many of those with the same keys as it takes, in equal groups.
fn group(shape: &AttentionShape) -> usize {
    let all = shape.heads / shape.kv_heads;
    (1..=MOST_HEADS.min(all)).rev().find(|n| all.is_multiple_of(*n)).unwrap_or(1)
}

fn source(shape: &AttentionShape) -> Result<Source> {
    match shape.head_dim {
        head_dim @ 1..=256 => Ok(Source::Last { head_dim: head_dim as u32, group: group(shape) as u32 }),
        wide => Err(Error::new(format!("the GPU's attention takes heads of up to 256 elements, not {wide}"))
            .cure("Leave out --device cuda: the CPU takes its place.")),
    }
}
