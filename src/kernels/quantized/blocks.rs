//! The storage format of quantised blocks: panels of 48 outputs, as for other weights.
//!
//! A block of a panel is some rows of 48 words, one for each output: first the integers, four bytes or eight nibbles per word, with `k` ascending
//! from the lowest bits (for nibbles, first the low halves of the bytes, then the high ones); then the scales. A panel is a sequence of blocks, which
//! the processor reads front to back.

use half::f16;
use rayon::prelude::*;

use crate::kernels::tasks::PANEL;

/// The most numbers in a block.
const LONGEST: usize = 32;

/// The components of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// 32 numbers from 0 to 15; scale and minimum are f16, in one word.
    Nibbles,
    /// Like `Nibbles`, but scale and minimum are f32, in one word each.
    WideNibbles,
    /// 32 numbers from -128 to 127; an f32 scale.
    Bytes,
    /// Like `Bytes`, with an f32 minimum.
    BytesAndLeast,
    /// 16 numbers from -128 to 127; an f32 scale.
    ShortBytes,
}

/// One block of one output: `w = scale q + least`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Group {
    /// The integers `q`, as many as the form has; the remaining elements are ignored.
    pub values: [i8; LONGEST],
    /// The factor of the integers.
    pub scale: f32,
    /// The number to add; 0 in forms without a minimum.
    pub least: f32,
}

/// A matrix `W [N, K]` in blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    form: Form,
    out_features: usize,
    in_features: usize,
    rows: Vec<Row>,
}

/// One word for each output of a panel: three cache lines.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Row([u32; PANEL]);

/// The shift of nibble `i` in a word.
pub(super) const fn shift_of_nibble(i: usize) -> usize {
    i % 4 * 8 + i / 4 * 4
}

impl Form {
    /// The numbers in a block.
    pub(crate) const fn len(self) -> usize {
        match self {
            Form::Nibbles | Form::WideNibbles | Form::Bytes | Form::BytesAndLeast => 32,
            Form::ShortBytes => 16,
        }
    }

    pub(super) const fn bits(self) -> usize {
        match self {
            Form::Nibbles | Form::WideNibbles => 4,
            Form::Bytes | Form::BytesAndLeast | Form::ShortBytes => 8,
        }
    }

    /// The numbers in a word.
    pub(super) const fn per_word(self) -> usize {
        u32::BITS as usize / self.bits()
    }

    /// The shift of number `i` in a word.
    fn shift(self, i: usize) -> usize {
        if self.bits() == 4 { shift_of_nibble(i) } else { 8 * i }
    }

    /// The words of an output's block with numbers, before those with the scales.
    pub(super) const fn value_words(self) -> usize {
        self.len() / self.per_word()
    }

    pub(super) const fn words(self) -> usize {
        self.value_words()
            + match self {
                Form::Nibbles | Form::Bytes | Form::ShortBytes => 1,
                Form::WideNibbles | Form::BytesAndLeast => 2,
            }
    }

    /// The words of a group; `None` if they cannot represent its scale and minimum exactly, or if these are not finite.
    fn words_of(self, group: &Group) -> Option<[u32; LONGEST / 4 + 2]> {
        let mut words = [0; LONGEST / 4 + 2];
        for (i, &value) in group.values[..self.len()].iter().enumerate() {
            let bits = u32::from(value as u8) & ((1 << self.bits()) - 1);
            words[i / self.per_word()] |= bits << self.shift(i % self.per_word());
        }
        let half = |x: f32| Some(f16::from_f32(x)).filter(|half| half.to_f32() == x).map(|half| u32::from(half.to_bits()));
        let scales = &mut words[self.value_words()..];
        match self {
            Form::Nibbles => scales[0] = half(group.scale)? | half(group.least)? << 16,
            Form::Bytes | Form::ShortBytes => scales[0] = group.scale.to_bits(),
            Form::WideNibbles | Form::BytesAndLeast => {
                scales[..2].copy_from_slice(&[group.scale.to_bits(), group.least.to_bits()]);
            }
        }
        (group.scale.is_finite() && group.least.is_finite()).then_some(words)
    }
}

impl Blocks {
    /// Builds the matrix; `group(n, i)` returns block `i` of output `n`. Returns `None` if the form cannot represent all blocks exactly, or if `K` is
    /// not a multiple of 32.
    pub(crate) fn new(
        form: Form,
        out_features: usize,
        in_features: usize,
        group: impl Fn(usize, usize) -> Group + Sync,
    ) -> Option<Blocks> {
        if in_features == 0 || !in_features.is_multiple_of(LONGEST) {
            return None;
        }
        let n_blocks = in_features / form.len();
        let mut rows = vec![Row([0; PANEL]); out_features.div_ceil(PANEL) * n_blocks * form.words()];
        let filled = rows.par_chunks_mut(n_blocks * form.words()).enumerate().try_for_each(|(panel, rows)| {
            for output in panel * PANEL..((panel + 1) * PANEL).min(out_features) {
                for (i, rows) in rows.chunks_exact_mut(form.words()).enumerate() {
                    let words = form.words_of(&group(output, i))?;
                    rows.iter_mut().zip(words).for_each(|(row, word)| row.0[output % PANEL] = word);
                }
            }
            Some(())
        });
        filled.map(|()| Blocks { form, out_features, in_features, rows })
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    pub(crate) fn out_features(&self) -> usize {
        self.out_features
    }

    pub(crate) fn in_features(&self) -> usize {
        self.in_features
    }

    pub(crate) fn bytes(&self) -> usize {
        self.rows.len() * size_of::<Row>()
    }

    pub(super) fn n_panels(&self) -> usize {
        self.out_features.div_ceil(PANEL)
    }

    /// The number of blocks of one output.
    pub(super) fn n_blocks(&self) -> usize {
        self.in_features / self.form.len()
    }

    /// A panel of `[n_blocks * words, PANEL]` words.
    pub(super) fn panel(&self, panel: usize) -> *const u32 {
        let depth = self.n_blocks() * self.form.words();
        self.rows[panel * depth..][..depth].as_ptr().cast()
    }

    /// Dequantises output `n`, `[K]`.
    pub(crate) fn row_into(&self, n: usize, row: &mut [f32]) {
        let form = self.form;
        let blocks = self.rows[n / PANEL * self.n_blocks() * form.words()..].chunks_exact(form.words());
        for (row, words) in row.chunks_exact_mut(form.len()).zip(blocks) {
            let word = |i: usize| words[i].0[n % PANEL];
            let first = word(form.value_words());
            let second = || f32::from_bits(word(form.value_words() + 1));
            let (scale, least) = match form {
                Form::Nibbles => (f16::from_bits(first as u16).to_f32(), f16::from_bits((first >> 16) as u16).to_f32()),
                Form::Bytes | Form::ShortBytes => (f32::from_bits(first), 0.0),
                Form::WideNibbles | Form::BytesAndLeast => (f32::from_bits(first), second()),
            };
            for (i, w) in row.iter_mut().enumerate() {
                let bits = word(i / form.per_word()) >> form.shift(i % form.per_word());
                let q = if form.bits() == 4 { (bits & 15) as f32 } else { f32::from(bits as u8 as i8) };
                *w = scale * q + least;
            }
        }
    }
}
