//! The paged KV cache of sequences being generated, on the device, and the attention of their newest tokens.
//!
//! The result of a token does not depend, to the bit, on the rest of the step. All tokens of a prompt except the last go through
//! attention.cu, which processes keys in aligned groups of 64 or fewer positions, like pages; the last token of each stretch goes through
//! last.cu, whether it belongs to a prompt or was generated. A prompt is therefore split in the same way wherever its beginning was computed,
//! provided that no shared page contains another prompt's last token. Products distinguish these two kinds of tokens in the same way
//! (step_rows.rs).

use std::ops::Range;

use super::array::Argument::U32;
use super::array::{Array, Indices};
use super::attention::{AttentionPlan, View, arguments_of};
use super::compile::Source;
use super::device::{Buffer, Device};
use super::operations::{optional, whole_rows};
use super::step_rows::StepRows;
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::attention::{AttentionShape, Stretch, check_pages};

/// The positions in a page on the device, `PAGE` in last.cu. A multiple of the keys that attention.cu processes at a time.
pub const DEVICE_PAGE: usize = 64;
/// The positions of a part, and the threads of the block that computes it: `KEYS` in last.cu.
const PART: usize = 256;
/// The words of `Query`, `Part` and `Mass` in last.cu.
const QUERY_WORDS: usize = 5;
const PART_WORDS: usize = 2;
const MASS_WORDS: usize = 2;
/// The most query heads that one block computes.
const MOST_HEADS: usize = 8;

/// The keys and values of all layers: for each `[pages * DEVICE_PAGE, 2 kv_heads * head_dim]`, a position's keys of all heads and then its
/// values.
pub struct PagedKeys {
    buffer: Buffer,
    n_pages: usize,
    columns: usize,
    dtype: Stored,
}

impl PagedKeys {
    /// Allocates `n_pages` pages of `layers` layers.
    pub fn new(
        device: &'static Device,
        shape: &AttentionShape,
        layers: usize,
        n_pages: usize,
        dtype: Stored,
    ) -> Result<PagedKeys> {
        let buffer = device.allocate(n_pages * PagedKeys::page_bytes(shape, layers, dtype))?;
        Ok(PagedKeys { buffer, n_pages, columns: kept_columns(shape), dtype })
    }

    /// The bytes that a page takes in `layers` layers.
    pub fn page_bytes(shape: &AttentionShape, layers: usize, dtype: Stored) -> usize {
        layers * DEVICE_PAGE * kept_columns(shape) * dtype.size_in_bytes() as usize
    }

    /// The number of pages.
    pub fn n_pages(&self) -> usize {
        self.n_pages
    }

    /// The keys and values of a layer.
    pub fn layer(&self, index: usize) -> Result<Array<'_>> {
        let len = self.n_pages * DEVICE_PAGE * self.columns;
        self.buffer.array(index * len * self.dtype.size_in_bytes() as usize, len, self.dtype)
    }
}

fn kept_columns(shape: &AttentionShape) -> usize {
    2 * shape.kv_heads * shape.head_dim
}

/// The attention of one step.
pub struct StepPlan {
    /// The rows of the tokens.
    batch: StepRows,
    kv_rows: usize,
    /// The attention of all tokens except the last of each stretch.
    pub before: AttentionPlan,
    /// The row of each token in the cache: first for the last tokens of all stretches, then for the tokens before them.
    pub rows: Vec<u32>,
    /// The `Query`s of last.cu: the last token of each stretch, and the padding rows of the batch.
    pub queries: Vec<u32>,
    /// The `Part`s of last.cu.
    pub parts: Vec<u32>,
    /// The pages of all stretches that are in use, one stretch after the other.
    pub pages: Vec<u32>,
}

/// A plan's lists on the device.
pub struct StepLists<'a> {
    /// Tiles of [`StepPlan::before`].
    pub tiles: Indices<'a>,
    /// Ranges of [`StepPlan::before`].
    pub ranges: Indices<'a>,
    /// [`StepPlan::rows`].
    pub rows: Indices<'a>,
    /// [`StepPlan::queries`].
    pub queries: Indices<'a>,
    /// [`StepPlan::parts`].
    pub parts: Indices<'a>,
    /// [`StepPlan::pages`].
    pub pages: Indices<'a>,
}

/// Scratch memory for the parts of sequences until they are summed.
pub struct LastRoom<'a> {
    sums: Array<'a>,
    masses: Array<'a>,
}

impl<'a> LastRoom<'a> {
    /// Allocates memory for `parts` parts; `array` allocates an array of f32 numbers.
    pub fn new(parts: usize, shape: &AttentionShape, array: impl Fn(usize) -> Result<Array<'a>>) -> Result<LastRoom<'a>> {
        let [sums, masses] = LastRoom::lens(parts, shape);
        Ok(LastRoom { sums: array(sums)?, masses: array(masses)? })
    }

    /// The lengths of its arrays.
    pub fn lens(parts: usize, shape: &AttentionShape) -> [usize; 2] {
        [parts * shape.heads * shape.head_dim, parts * shape.heads * MASS_WORDS]
    }
}

impl StepPlan {
    /// Plans a step for stretches whose tokens have the rows `batch`, and a cache of `n_pages` pages.
    pub fn new(
        stretches: &[Stretch],
        batch: &StepRows,
        n_pages: usize,
        shape: &AttentionShape,
        dtype: Stored,
        shared_bytes: usize,
    ) -> Result<StepPlan> {
        check_pages(stretches, n_pages, DEVICE_PAGE)?;
        if batch.n_last() != stretches.len() {
            return Err(Error::new(format!("{} stretches have rows for {}", stretches.len(), batch.n_last())));
        }
        let views = stretches.iter().enumerate().map(|(number, stretch)| all_but_last(stretch, batch.before_last(number)));
        let mut plan = StepPlan {
            batch: batch.clone(),
            kv_rows: 0,
            before: AttentionPlan::of(views, batch.len(), shape, dtype, shared_bytes),
            rows: Vec::new(),
            queries: Vec::new(),
            parts: Vec::new(),
            pages: Vec::new(),
        };
        stretches.iter().for_each(|stretch| plan.add_last(stretch));
        for stretch in stretches {
            plan.rows.extend((stretch.position..last_position(stretch)).map(|position| cache_row(stretch, position)));
        }
        for row in batch.vacant().into_iter().flatten() {
            plan.queries.extend([row as u32, 0, 0, 0, 0]);
        }
        Ok(plan)
    }

    fn add_last(&mut self, stretch: &Stretch) {
        let end = last_position(stretch) + 1;
        self.rows.push(cache_row(stretch, end - 1));
        // The index of the stretch, which is also the row of its last token.
        let query = (self.queries.len() / QUERY_WORDS) as u32;
        let parts = end.div_ceil(PART);
        let first_part = self.n_parts();
        let words = [end - 1, self.pages.len(), first_part, parts];
        self.queries.push(query);
        self.queries.extend(words.map(|number| number as u32));
        self.parts.extend((0..parts).flat_map(|part| [query, (part * PART) as u32]));
        let pages = &stretch.pages[..end.div_ceil(DEVICE_PAGE)];
        self.pages.extend(pages.iter().map(|&page| page as u32));
        let rows = pages.iter().map(|page| (page + 1) * DEVICE_PAGE).max().unwrap_or(0);
        self.kv_rows = self.kv_rows.max(rows);
    }

    /// The number of parts.
    pub fn n_parts(&self) -> usize {
        self.parts.len() / PART_WORDS
    }

    /// The total number of words in its lists.
    pub fn n_words(&self) -> usize {
        let lists = [&self.before.tiles, &self.before.ranges, &self.rows, &self.queries, &self.parts, &self.pages];
        lists.into_iter().map(Vec::len).sum()
    }

    /// The most parts that `sequences` sequences of `positions` positions have.
    pub fn most_parts(sequences: usize, positions: usize) -> usize {
        sequences * positions.div_ceil(PART)
    }

    /// The most words for `tokens` tokens, including padding rows, in sequences of `positions` positions.
    pub fn most_words(tokens: usize, sequences: usize, positions: usize) -> usize {
        // A tile has at least one token, and the last tokens of stretches are in no tile.
        let pages = sequences * positions.div_ceil(DEVICE_PAGE);
        let before = tokens * AttentionPlan::TILE_WORDS + pages * AttentionPlan::RANGE_WORDS;
        before + tokens * (1 + QUERY_WORDS) + StepPlan::most_parts(sequences, positions) * PART_WORDS + pages
    }
}

/// The position of the stretch's last token in its sequence.
fn last_position(stretch: &Stretch) -> usize {
    (stretch.position + stretch.tokens.len()).saturating_sub(1)
}

/// The row of the cache for a position of the sequence.
fn cache_row(stretch: &Stretch, position: usize) -> u32 {
    (stretch.pages[position / DEVICE_PAGE] * DEVICE_PAGE + position % DEVICE_PAGE) as u32
}

/// The view of attention.cu on a stretch: without its last token, and without what only that token sees. The others have the rows `tokens`.
fn all_but_last(stretch: &Stretch, tokens: Range<usize>) -> View {
    let n_keys = stretch.position + tokens.len();
    let seen = stretch.pages.iter().enumerate().map_while(|(i, page)| {
        let rows = n_keys.saturating_sub(i * DEVICE_PAGE).min(DEVICE_PAGE);
        (rows > 0).then_some(page * DEVICE_PAGE..page * DEVICE_PAGE + rows)
    });
    View { position: stretch.position, seen: seen.collect(), tokens }
}

impl Device {
    /// Adds the keys and values in prepared `qkv` to a layer of the cache.
    pub fn keep(&self, qkv: Array, plan: &StepPlan, shape: &AttentionShape, lists: &StepLists, kept: Array) -> Result<()> {
        let (columns, of_keys) = (shape.columns(), shape.heads * shape.head_dim);
        let (n_last, before) = (plan.batch.n_last(), plan.batch.before());
        for (rows, first) in [(0..n_last, 0), (before, n_last)] {
            if !rows.is_empty() {
                let (x, to) = (qkv.part(rows.start * columns, rows.len() * columns)?, lists.rows.part(first, rows.len())?);
                self.put_rows(x, columns, of_keys, to, kept, kept_columns(shape))?;
            }
        }
        Ok(())
    }

    /// The attention of the last token of each stretch over a layer of the cache: rows of `y [T, heads * head_dim]`, in the format of
    /// prepared `qkv [T, C]`. `sinks [heads]` are f32. Sets padding rows to 0, and leaves all other rows unchanged.
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
        let AttentionShape { heads, head_dim, .. } = *shape;
        let dtype = y.dtype();
        let tokens = whole_rows("an attention", y, heads * head_dim)?;
        qkv.expect("queries, keys and values", tokens * shape.columns(), dtype)?;
        kept.expect("kept keys and values", kept.len(), dtype)?;
        let is_whole = tokens == plan.batch.len()
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
        let [n_heads, n_kv_heads, scale, window, softcap] = arguments_of(shape);
        let arguments = [
            qkv.argument(),
            kept.argument(),
            lists.queries.argument(),
            lists.parts.argument(),
            lists.pages.argument(),
            sums.argument(),
            masses.argument(),
            n_heads,
            n_kv_heads,
            scale,
            window,
            softcap,
        ];
        let blocks = (plan.n_parts(), heads / group(shape));
        // SAFETY: the plan's rows lie within the batch and the cache, as checked above; sums and masses have room for all parts.
        unsafe { self.launch(kernel, blocks, PART as u32, 0, &arguments)? };
        let kernel = self.kernel(source, of_parts)?;
        let sinks = optional(sinks, heads)?;
        let arguments = [sums.argument(), masses.argument(), lists.queries.argument(), sinks, y.argument(), U32(heads as u32)];
        // SAFETY: as above; there is one sink per head, or none.
        unsafe { self.launch(kernel, (plan.queries.len() / QUERY_WORDS, 1), 256, 0, &arguments) }
    }
}

/// The query heads that a block computes together: equal groups of heads with the same keys, as large as possible.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Range;
    use std::sync::Arc;

    use candle_core::{Device as Candle, Tensor};

    use super::super::shape::LARGE_TILE;
    use super::super::{PrepareOptions, RotaryTables, hosted};
    use super::*;
    use crate::kernels::attention::{Heads, attention};
    use crate::kernels::rotary::{Rotary, RotaryStyle};
    use crate::kernels::testing::{close, device, noise};
    use crate::kernels::{Dtype, Kernels, Segment};

    const N_PAGES: usize = 24;

    /// Some sequences, their pages, and the parameters of the attention.
    struct Setting<'a> {
        device: &'static Device,
        shape: AttentionShape,
        dtype: Stored,
        rotary: &'a Rotary,
        sinks: Option<&'a [f32]>,
        sequences: &'a [Vec<f32>],
    }

    /// The output of the heads, by sequence and position.
    type Found = BTreeMap<(usize, usize), Vec<f32>>;

    impl Setting<'_> {
        /// Reads positions of sequences, step by step, with the given `pages`.
        fn run(&self, pages: &[Arc<[usize]>], steps: &[Vec<(usize, Range<usize>)>]) -> Found {
            let (device, shape, dtype) = (self.device, &self.shape, self.dtype);
            let (columns, width) = (shape.columns(), shape.heads * shape.head_dim);
            let keys = PagedKeys::new(device, shape, 2, N_PAGES, dtype).unwrap();
            // Earlier sequences left infinities in the cache.
            let len = N_PAGES * DEVICE_PAGE * kept_columns(shape);
            let infinite = device.upload(&vec![f32::INFINITY; len], dtype).unwrap();
            device.copy(infinite.array(0, len, dtype).unwrap(), keys.layer(1).unwrap()).unwrap();
            let tables = RotaryTables::new(device, self.rotary).unwrap();
            let sinks = self.sinks.map(|sinks| device.upload(sinks, Stored::F32).unwrap());
            let mut found = Found::new();
            for step in steps {
                let (mut stretches, mut held) = (Vec::new(), 0);
                for (sequence, range) in step {
                    held += range.len();
                    let (tokens, pages) = (held - range.len()..held, pages[*sequence].clone());
                    stretches.push(Stretch { tokens, position: range.start, pages, sequence: *sequence });
                }
                let batch = StepRows::new(&stretches).unwrap();
                let tokens = batch.len();
                // Padding rows contain some numbers, too.
                let (mut rows, mut positions) = (vec![7.0; tokens * columns], vec![0u32; tokens]);
                let places = step.iter().enumerate().flat_map(|(number, (sequence, range))| {
                    let batch = &batch;
                    range.clone().enumerate().map(move |(token, position)| (batch.row(number, token), *sequence, position))
                });
                let places: Vec<(usize, usize, usize)> = places.collect();
                for &(row, sequence, position) in &places {
                    let from = &self.sequences[sequence][position * columns..(position + 1) * columns];
                    rows[row * columns..(row + 1) * columns].copy_from_slice(from);
                    positions[row] = position as u32;
                }
                let plan = StepPlan::new(&stretches, &batch, N_PAGES, shape, dtype, device.shared_bytes()).unwrap();
                assert!(plan.n_words() <= StepPlan::most_words(tokens, step.len(), 1024));
                assert!(plan.n_parts() <= StepPlan::most_parts(step.len(), 1024));
                let lists =
                    [&positions, &plan.before.tiles, &plan.before.ranges, &plan.rows, &plan.queries, &plan.parts, &plan.pages];
                let buffers = lists.map(|list| hosted::upload_words(device, list).unwrap());
                let sent = |i: usize| buffers[i].indices(0, lists[i].len(), hosted::end(lists[i])).unwrap();
                let step_lists = StepLists {
                    tiles: sent(1),
                    ranges: sent(2),
                    rows: sent(3),
                    queries: sent(4),
                    parts: sent(5),
                    pages: sent(6),
                };
                let qkv = device.upload(&rows, dtype).unwrap();
                let qkv = qkv.array(0, tokens * columns, dtype).unwrap();
                let options = PrepareOptions { shape, rotary: &tables, bias: None, norms: None, gated: false, growth: None };
                device.prepare_attention(qkv, qkv, &options, &plan.before, sent(0)).unwrap();
                let kept = keys.layer(1).unwrap();
                device.keep(qkv, &plan, shape, &step_lists, kept).unwrap();
                let y = device.allocate(tokens * width * 4).unwrap();
                let y = y.array(0, tokens * width, dtype).unwrap();
                let sinks = sinks.as_ref();
                device.attention(qkv, Some(kept), &plan.before, step_lists.tiles, step_lists.ranges, shape, sinks, y).unwrap();
                let [sums, masses] = LastRoom::lens(plan.n_parts(), shape).map(|len| device.allocate(4 * len).unwrap());
                let room = LastRoom {
                    sums: sums.array(0, sums.bytes() / 4, Stored::F32).unwrap(),
                    masses: masses.array(0, masses.bytes() / 4, Stored::F32).unwrap(),
                };
                device.attend_to_last(qkv, kept, &plan, &step_lists, shape, sinks, &room, y).unwrap();
                let y = device.download(y).unwrap();
                let row = |row: usize| &y[row * width..(row + 1) * width];
                let mut vacant = batch.vacant().into_iter().flatten();
                assert!(vacant.all(|vacant| row(vacant).iter().all(|&x| x == 0.0)), "rows without a token");
                found.extend(places.iter().map(|&(place, sequence, position)| ((sequence, position), row(place).to_vec())));
            }
            found
        }

        fn expected(&self, sequence: usize) -> Vec<f64> {
            let n = self.sequences[sequence].len() / self.shape.columns();
            let qkv = Tensor::from_slice(&self.sequences[sequence], (n, self.shape.columns()), &Candle::Cpu).unwrap();
            let segments = vec![Segment { tokens: 0..n, context: Vec::new() }].into();
            let sinks = self.sinks.map(|sinks| Tensor::from_slice(sinks, sinks.len(), &Candle::Cpu).unwrap());
            let heads = Heads { shape: &self.shape, rotary: self.rotary, sinks: sinks.as_ref(), dtype: Dtype::F32 };
            let read = attention(&qkv, &segments, &heads, Kernels::Reference).unwrap().read;
            read.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
        }
    }

    /// Prompts of several tokens and then single tokens give the results of whole sequences, and their bits do not depend on what else is in
    /// the step, on the location of their pages, or on whether another prompt computed the beginning.
    #[test]
    fn sequences_by_pages_are_whole_sequences_and_alone_in_them() {
        let Some(device) = device() else { return };
        let cases = [
            ((64, 9, 3), None, None),
            ((64, 2, 1), Some(30), Some(3.0)),
            ((20, 4, 2), Some(300), None),
            ((7, 3, 1), Some(30), None),
            ((128, 8, 1), None, None),
            ((256, 4, 4), Some(300), None),
        ];
        for ((head_dim, heads, kv_heads), window, softcap) in cases {
            for dtype in [Stored::F32, Stored::Bf16] {
                let scale = 2.0 / (head_dim as f32).sqrt();
                check(device, AttentionShape { heads, kv_heads, head_dim, scale, window, softcap }, dtype);
            }
        }
    }

    fn check(device: &'static Device, shape: AttentionShape, dtype: Stored) {
        let frequencies: Vec<f64> = (0..shape.head_dim / 4).map(|i| 100f64.powf(-(i as f64) / 8.0)).collect();
        let rotary = Rotary::new(&frequencies, 1024, RotaryStyle::Half, 1.0);
        let columns = shape.columns();
        let lengths = [540usize, 106, 4];
        let mut sequences: Vec<Vec<f32>> =
            lengths.iter().enumerate().map(|(i, n)| noise(n * columns, 2.0, i as u64 + 1)).collect();
        // The second sequence begins like the first, for slightly more than a page.
        let common = sequences[0][..70 * columns].to_vec();
        sequences[1][..70 * columns].copy_from_slice(&common);
        let setting = Setting { device, shape, dtype, rotary: &rotary, sinks: None, sequences: &sequences };
        let pages = |first: Range<usize>, second: &[usize], third: usize| -> [Arc<[usize]>; 3] {
            [first.rev().collect(), second.into(), [third].into()]
        };
        let own = pages(5..14, &[1, 3], 0);
        let alone: Found = [
            setting.run(&own, &[vec![(0, 0..530)], vec![(0, 530..531)], vec![(0, 531..532)]]),
            setting.run(&own, &[vec![(1, 0..104)], vec![(1, 104..105)], vec![(1, 105..106)]]),
            setting.run(&own, &[vec![(2, 0..1)], vec![(2, 1..2)]]),
        ]
        .into_iter()
        .flatten()
        .collect();
        let among = pages(12..21, &[20, 2], 7);
        let together = setting.run(
            &among,
            &[
                vec![(2, 0..1), (0, 0..530)],
                vec![(1, 64..104), (0, 530..531), (2, 1..2)],
                vec![(0, 531..532), (1, 104..105)],
                vec![(1, 105..106)],
            ],
        );
        let bits = |found: &Found| -> Vec<((usize, usize), Vec<u32>)> {
            found.iter().map(|(place, row)| (*place, row.iter().map(|x| x.to_bits()).collect())).collect()
        };
        let mut of_shared: Found = alone.clone();
        of_shared.retain(|place, _| together.contains_key(place));
        assert_eq!(together.len(), 532 + 42 + 2);
        assert!(bits(&of_shared) == bits(&together), "{shape:?} {dtype}");
        let tolerance = if dtype == Stored::F32 { 2e-5 } else { 3e-2 };
        let width = shape.heads * shape.head_dim;
        for sequence in 0..3 {
            let expected = setting.expected(sequence);
            for (&(_, position), row) in alone.iter().filter(|((found, _), _)| *found == sequence) {
                let what = format!("{shape:?} {dtype} sequence {sequence} at {position}");
                close(row, &expected[position * width..(position + 1) * width], tolerance, &what);
            }
        }
    }

    #[test]
    fn sinks_take_their_share() {
        let Some(device) = device() else { return };
        for window in [None, Some(20)] {
            let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 16, scale: 0.5, window, softcap: None };
            let rotary = Rotary::new(&[1.0, 0.1], 1024, RotaryStyle::Half, 1.0);
            let sequences = [noise(300 * shape.columns(), 1.0, 5)];
            let sinks = [3.0, -2.0, 0.0, 5.0];
            let setting =
                Setting { device, shape, dtype: Stored::F32, rotary: &rotary, sinks: Some(&sinks), sequences: &sequences };
            let found = setting.run(&[(0..5).collect()], &[vec![(0, 0..299)], vec![(0, 299..300)]]);
            let width = shape.heads * shape.head_dim;
            let expected = setting.expected(0);
            for position in 0..300 {
                close(&found[&(0, position)], &expected[position * width..(position + 1) * width], 2e-5, "with sinks");
            }
        }
    }

    /// A product's rows have the same bits beside any others, in small tiles and in large ones. This relies on tiles of one size, because the
    /// algorithm depends on the number of rows.
    #[test]
    fn rows_of_products_in_tiles_have_their_own_bits() {
        use super::super::{Rows, TILE};
        use crate::kernels::matmul::Matrix;
        let Some(device) = device() else { return };
        for (dtype, products) in [(Stored::F32, Dtype::F32), (Stored::Bf16, Dtype::Bf16)] {
            let (k, n) = (200, 72);
            let (x, w, residual) = (noise(600 * k, 1.0, 1), noise(n * k, 1.0, 2), noise(600 * n, 1.0, 3));
            let matrix =
                Matrix::new([Ok(Tensor::from_slice(&w, (n, k), &Candle::Cpu).unwrap())], products, Kernels::Cuda).unwrap();
            // Some rows in small tiles, followed by others in large tiles.
            let run = |small: Range<usize>, large: Range<usize>, adds: bool| -> [Vec<u32>; 2] {
                let lens = [small.len().next_multiple_of(TILE), large.len().next_multiple_of(LARGE_TILE)];
                let fill = |numbers: &[f32], width: usize| -> Vec<f32> {
                    let filled = [small.clone(), large.clone()].into_iter().zip(lens).flat_map(|(rows, len)| {
                        let mut numbers = numbers[rows.start * width..rows.end * width].to_vec();
                        numbers.resize(len * width, 9.0);
                        numbers
                    });
                    filled.collect()
                };
                let padded = lens[0] + lens[1];
                let x = device.upload(&fill(&x, k), dtype).unwrap();
                let y = device.upload(&fill(&residual, n), Stored::F32).unwrap();
                let y = y.array(0, padded * n, Stored::F32).unwrap();
                let x = x.array(0, padded * k, dtype).unwrap();
                let rows = if large.is_empty() { Rows::InTiles } else { Rows::InBothTiles { small: lens[0] } };
                device.multiply(x, matrix.on_device().unwrap(), y, adds, rows).unwrap();
                let y: Vec<u32> = device.download(y).unwrap().iter().map(|x| x.to_bits()).collect();
                [y[..small.len() * n].to_vec(), y[lens[0] * n..][..large.len() * n].to_vec()]
            };
            for adds in [false, true] {
                let [small, _] = run(0..600, 0..0, adds);
                let [_, large] = run(0..0, 0..600, adds);
                // Products of another number of rows give other bits; otherwise this test would show nothing.
                assert!(!device.name().starts_with("emulated") || small != large, "{dtype}, adds {adds}");
                let of = |all: &[u32], rows: &Range<usize>| all[rows.start * n..rows.end * n].to_vec();
                for rows in [0..1, 299..300, 100..100 + TILE, 3..70, 60..300] {
                    for others in [0..0, 7..8, 300..600] {
                        let what = format!("{dtype}, adds {adds}, rows {rows:?} beside {others:?}");
                        assert!(run(rows.clone(), others.clone(), adds) == [of(&small, &rows), of(&large, &others)], "{what}");
                        assert!(run(others.clone(), rows.clone(), adds) == [of(&small, &others), of(&large, &rows)], "{what}");
                    }
                }
            }
        }
    }

    /// Nor do the bits depend on a row's place in its tile, for the shapes that models have: a row that is 1, 17 or 32 places further down,
    /// and in a large tile 100 as well, has the same bits. The emulator only runs the smallest shape.
    #[test]
    fn a_place_in_a_tile_changes_no_bit() {
        use super::super::{Rows, TILE, Weight};
        let Some(device) = device() else { return };
        let shapes = [(960, 576), (576, 1536), (3072, 576), (6144, 4096), (24_576, 4096), (4096, 12_288), (151_936, 4096)];
        let n_shapes = if device.name().starts_with("emulated") { 1 } else { shapes.len() };
        let some = noise((1 << 20) + 7, 0.1, 1);
        for (n, k) in shapes.into_iter().take(n_shapes) {
            let w: Vec<f32> = some.iter().copied().cycle().take(n * k).collect();
            for (dtype, result) in [(Stored::F32, Stored::F32), (Stored::Bf16, Stored::F32), (Stored::Bf16, Stored::Bf16)] {
                let weight = Weight::new(vec![(device.upload(&w, dtype).unwrap(), n)], k, dtype).unwrap();
                for (len, rows) in [(TILE, Rows::InTiles), (LARGE_TILE, Rows::InBothTiles { small: 0 })] {
                    let x = noise(len * k, 1.0, 2);
                    let run = |places: usize| -> Vec<u32> {
                        let mut x = x.clone();
                        x.rotate_right(places * k);
                        let (x, y) = (device.upload(&x, dtype).unwrap(), device.allocate(4 * len * n).unwrap());
                        let y = y.array(0, len * n, result).unwrap();
                        device.multiply(x.array(0, len * k, dtype).unwrap(), &weight, y, false, rows).unwrap();
                        let mut y: Vec<u32> = device.download(y).unwrap().iter().map(|y| y.to_bits()).collect();
                        y.rotate_left(places * n);
                        y
                    };
                    let first = run(0);
                    for places in [1, 17, 32, 100].into_iter().filter(|&places| places < len) {
                        let what = format!("{n} x {k} in {dtype}, result in {result}: {places} places further down of {len}");
                        assert!(run(places) == first, "{what}");
                    }
                }
            }
        }
    }

    /// Stretches that do not fit the pages of a cache are refused; this test needs no GPU.
    #[test]
    fn a_step_keeps_to_its_pages() {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 64, scale: 1.0, window: None, softcap: None };
        let stretch = |tokens: Range<usize>, position: usize, pages: &[usize]| Stretch {
            tokens,
            position,
            pages: pages.into(),
            sequence: 0,
        };
        let plan = |stretches: &[Stretch]| {
            let batch = StepRows::new(stretches).unwrap();
            StepPlan::new(stretches, &batch, 4, &shape, Stored::Bf16, 99 << 10).map_err(|error| error.to_string())
        };
        let whole = plan(&[stretch(0..70, 0, &[2, 0]), stretch(70..71, 64, &[2, 3])]).unwrap();
        // The rows of the last tokens come first.
        assert_eq!(whole.rows[..2], [5, 192]);
        assert_eq!(whole.rows[2..66], (128..192).collect::<Vec<u32>>());
        assert_eq!(whole.rows[66..], [0, 1, 2, 3, 4]);
        assert_eq!((whole.kv_rows, whole.n_parts(), whole.queries.len() / QUERY_WORDS), (256, 2, 64 + 256 - 69));
        for (stretches, message) in [
            (vec![stretch(0..70, 0, &[2])], "lacks some"),
            (vec![stretch(0..1, 0, &[4])], "lacks some"),
            (vec![stretch(0..1, 64, &[0, 1]), stretch(1..2, 4, &[1])], "written twice"),
        ] {
            assert!(plan(&stretches).is_err_and(|error| error.contains(message)), "{message}");
        }
        let one = [stretch(0..1, 0, &[0])];
        let of_two = StepRows::new(&[one[0].clone(), stretch(1..2, 0, &[1])]).unwrap();
        assert!(StepPlan::new(&one, &of_two, 4, &shape, Stored::Bf16, 99 << 10).is_err());
    }
}
