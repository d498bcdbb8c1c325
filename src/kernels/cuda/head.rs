//! The head on the device: computes logits for some rows at a time, and reduces them to statistics, the largest logit or a sampled token.

use super::array::Argument::{F32, U32};
use super::array::{Array, Indices};
use super::compile::Source;
use super::device::Device;
use super::operations::whole_rows;
use super::product::Weight;
use super::shape::Rows;
use crate::error::{Error, Result};
use crate::kernels::statistics::HeadOptions;
use crate::kernels::{Choice, NEXT_CHOICES, Stored, TokenStatistics};

/// `BLOCK` and `THREADS` in draw.cu.
const DRAW_BLOCK: usize = 512;
const DRAW_THREADS: u32 = 128;

/// `THREADS` in statistics.cu and largest.cu, and `GROUPS` in statistics.cu.
const HEAD_THREADS: usize = 512;
const HEAD_GROUPS: usize = 256;
/// The words of `TokenStatistics` in statistics.cu.
pub const STATISTICS_WORDS: usize = 9 + 2 * NEXT_CHOICES;
/// The words of `RowSums` in statistics.cu.
pub const SUMS_WORDS: usize = 14 + NEXT_CHOICES;

impl Device {
    /// The statistics of `targets [N]`, from `logits [N, V]` f32. Writes [`STATISTICS_WORDS`] words per token to `statistics`, [`SUMS_WORDS`]
    /// to `sums`, and the `top_k` largest logits to `top_logits`.
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

    /// The index of the largest logit of each row of `logits [N, V]` f32, the first of equals, in `ids [N]` words; `u32::MAX` if a logit is
    /// NaN or the largest is not finite.
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

    /// Samples a token from each row of `logits [N, V]` f32, with probabilities proportional to `exp((logit - largest) scale)`. `largest [N]`
    /// is the result of [`Device::largest_of_rows`], `randoms [2 N]` words of f64 in 0..1; writes `ids [N]` words, `u32::MAX` where `largest`
    /// is.
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
        // SAFETY: there is a sum for each block of each row, and the ids in `largest` lie within the rows or are `u32::MAX`.
        unsafe { self.launch(kernel, (blocks, n), DRAW_THREADS, 0, &[logits, largest, room, vocabulary, scale])? };
        let kernel = self.kernel(Source::Draw, "draw")?;
        // SAFETY: as above; there is a random number and room for an id for each row.
        unsafe { self.launch(kernel, (n, 1), DRAW_THREADS, 0, &[logits, largest, room, randoms, ids, vocabulary, scale]) }
    }

    /// The shared memory for the `top_k` largest of a row of logits; `None` if there is not enough.
    fn head_shared_bytes(&self, vocabulary: usize, top_k: usize) -> Option<usize> {
        let vector = if vocabulary.is_multiple_of(4) { 4 } else { 1 };
        let of_group = HEAD_THREADS / HEAD_GROUPS * vector * vocabulary.div_ceil(vector * HEAD_THREADS);
        let bytes = 4 * (top_k + top_k.checked_sub(1)? * of_group);
        // The kernel declares some kilobytes statically.
        (top_k <= HEAD_GROUPS && bytes + (8 << 10) <= self.shared_bytes as usize).then_some(bytes)
    }

    /// Whether the device can find the `top_k` largest of a row of logits.
    pub fn can_list(&self, vocabulary: usize, top_k: usize) -> bool {
        self.head_shared_bytes(vocabulary, top_k.min(vocabulary)).is_some()
    }
}

/// The arrays that statistics.cu reads and writes.
#[derive(Clone, Copy)]
struct HeadArrays<'a> {
    logits: Array<'a>,
    targets: Indices<'a>,
    statistics: Indices<'a>,
    sums: Array<'a>,
    top_logits: Array<'a>,
}

/// The scratch memory of the head, with room for the logits of at least one row.
pub struct HeadRoom<'a> {
    /// Room for the logits of some rows, f32.
    pub logits: Array<'a>,
    /// Room for the sums of these rows in statistics.cu, [`SUMS_WORDS`] words each.
    pub sums: Array<'a>,
    /// The largest logits of these rows, or, if there is room for `[N, top_k]`, of all rows, which are then kept.
    pub top_logits: Array<'a>,
}

impl Device {
    /// The statistics of `targets [N]` at `hidden [N, D]`, in the head's format. Writes [`STATISTICS_WORDS`] words per token to `statistics`.
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

/// The rows of logits that are held at a time: about 512 MiB of them.
pub fn head_chunk(vocabulary: usize) -> usize {
    ((512 << 20) / (4 * vocabulary.max(1))).clamp(128, 8192) / 128 * 128
}

/// The words of scratch memory that [`Device::draw`] needs for each row.
pub fn draw_words(vocabulary: usize) -> usize {
    2 * vocabulary.div_ceil(DRAW_BLOCK)
}

/// Converts the words that statistics.cu wrote for one token.
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
