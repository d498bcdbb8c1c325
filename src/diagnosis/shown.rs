//! Selects the rows of a run that are shown to a person, with all numbers of their tokens: all rows of a small run, and of a large one those with the
//! sharpest conflicts and a random sample.
//!
//! Takes two passes over the token table: one to rank the rows, one to gather the tokens of those shown.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use crate::error::Result;
use crate::random;
use crate::table::{Column, Quadrant, Row, TokenChunk, read_chunks, texts_of};

/// The rows to show.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// The rows, in data order.
    pub rows: Vec<ShownRow>,
    /// Their tokens, in data order, with all numeric columns.
    pub tokens: TokenChunk,
    /// The text of every token id among the targets and first choices.
    pub texts: HashMap<u32, String>,
    /// The number of rows in the run with a scored token.
    pub of_rows: usize,
    /// The numbers of all rows of the run, with a scored token or without: the first and the last of each unbroken sequence.
    pub numbers: Vec<[u32; 2]>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ShownRow {
    /// The row of rows.parquet.
    pub row: Row,
    /// Whether the row is part of the random sample rather than shown for its conflicts.
    pub is_sampled: bool,
    /// How many of [`Shown::tokens`] belong to the row; they follow those of the previous row.
    pub n_tokens: usize,
}

/// The share of the token budget for rows with conflicts, if not all rows fit; the rest is sampled at random, so that a person also sees what is
/// usual.
const RANKED_SHARE: f64 = 0.8;
const SEED: u64 = 0;

/// The columns read from the table.
const COLUMNS: [Column; 17] = [
    Column::Row,
    Column::Turn,
    Column::Pos,
    Column::Source,
    Column::TokenId,
    Column::Begin,
    Column::End,
    Column::Logprob,
    Column::Entropy,
    Column::EntropyTopk,
    Column::Rank,
    Column::Tail,
    Column::Varentropy,
    Column::Grad,
    Column::TopId,
    Column::TopLogprob,
    Column::Quadrant,
];

/// Selects rows of up to `most_tokens` tokens in total; a first row that exceeds this alone is still shown. `of_form` are the conflicts, by row and
/// position, that concern the form of a text ([`ConflictKind::is_of_form`]): rows with other conflicts come first, as they do on the page.
///
/// [`ConflictKind::is_of_form`]: super::kinds::ConflictKind::is_of_form
pub(crate) fn shown(tables: &[PathBuf], rows: &[Row], of_form: &HashSet<(u32, u32)>, most_tokens: usize) -> Result<Shown> {
    gathered(tables, rows, of_form, |scored, sizes| choose(scored, sizes, most_tokens))
}

/// The rows with these numbers, to set them beside those of another run.
pub(crate) fn shown_of(tables: &[PathBuf], rows: &[Row], numbers: &HashSet<u32>) -> Result<Shown> {
    gathered(tables, rows, &HashSet::new(), |scored, _| {
        scored.iter().filter(|row| numbers.contains(&row.row)).map(|row| (row.row, false)).collect()
    })
}

/// Gathers the tokens of the rows of `choice`, which gives their numbers, each with whether it was sampled at random.
fn gathered(
    tables: &[PathBuf],
    rows: &[Row],
    of_form: &HashSet<(u32, u32)>,
    choice: impl FnOnce(&[&Row], &HashMap<u32, Size>) -> HashMap<u32, bool>,
) -> Result<Shown> {
    let sizes = sizes(tables, of_form)?;
    let scored: Vec<&Row> = rows.iter().filter(|row| sizes.contains_key(&row.row)).collect();
    let chosen = choice(&scored, &sizes);
    let mut tokens = TokenChunk::default();
    for chunk in read_chunks(tables, &COLUMNS) {
        let chunk = chunk?;
        tokens.append_where(&chunk, |i| chosen.contains_key(&chunk.row[i]));
    }
    let ids: HashSet<u32> = tokens.token_id.iter().chain(&tokens.top_id).copied().collect();
    let texts = texts_of(tables, &ids)?;
    let of_row = |row: &&Row| {
        let is_sampled = *chosen.get(&row.row)?;
        Some(ShownRow { row: (*row).clone(), is_sampled, n_tokens: sizes.get(&row.row)?.tokens })
    };
    let mut numbers: Vec<[u32; 2]> = Vec::new();
    for row in rows {
        match numbers.last_mut() {
            Some([_, last]) if last.checked_add(1) == Some(row.row) => *last = row.row,
            _ => numbers.push([row.row; 2]),
        }
    }
    Ok(Shown { rows: scored.iter().filter_map(of_row).collect(), tokens, texts, of_rows: scored.len(), numbers })
}

/// The numbers of the rows that [`shown`] shows.
pub(crate) fn rows_shown(
    tables: &[PathBuf],
    rows: &[Row],
    of_form: &HashSet<(u32, u32)>,
    most_tokens: usize,
) -> Result<HashSet<u32>> {
    let sizes = sizes(tables, of_form)?;
    let scored: Vec<&Row> = rows.iter().filter(|row| sizes.contains_key(&row.row)).collect();
    Ok(choose(&scored, &sizes, most_tokens).into_keys().collect())
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    tokens: usize,
    sharpest: Sharpest,
}

/// The sharpest conflict of a row, in the order in which rows are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
enum Sharpest {
    /// The row has no conflict.
    #[default]
    None,
    /// The row has only conflicts of form; their largest surplus.
    OfForm(f32),
    /// The row has other conflicts; their largest surplus.
    OfContent(f32),
}

impl Sharpest {
    fn or(self, other: Sharpest) -> Sharpest {
        if other > self { other } else { self }
    }
}

/// The number of tokens and the sharpest conflict of each row, by row number.
fn sizes(tables: &[PathBuf], of_form: &HashSet<(u32, u32)>) -> Result<HashMap<u32, Size>> {
    let mut sizes: HashMap<u32, Size> = HashMap::new();
    for chunk in read_chunks(tables, &[Column::Row, Column::Pos, Column::Logprob, Column::Entropy, Column::Quadrant]) {
        let chunk = chunk?;
        for i in 0..chunk.len() {
            let size = sizes.entry(chunk.row[i]).or_default();
            size.tokens += 1;
            let surplus = -chunk.logprob[i] - chunk.entropy[i];
            if chunk.quadrant[i] == Quadrant::ConfidentConflict && surplus.is_finite() {
                let is_of_form = of_form.contains(&(chunk.row[i], chunk.pos[i]));
                let own = if is_of_form { Sharpest::OfForm(surplus) } else { Sharpest::OfContent(surplus) };
                size.sharpest = size.sharpest.or(own);
            }
        }
    }
    Ok(sizes)
}

/// The numbers of the rows to show, each with whether it was sampled at random.
fn choose(rows: &[&Row], sizes: &HashMap<u32, Size>, most_tokens: usize) -> HashMap<u32, bool> {
    let size_of = |row: &Row| sizes.get(&row.row).copied().unwrap_or_default();
    if rows.iter().map(|row| size_of(row).tokens).sum::<usize>() <= most_tokens {
        return rows.iter().map(|row| (row.row, false)).collect();
    }
    let mut ranked: Vec<&Row> = rows.iter().copied().filter(|row| size_of(row).sharpest != Sharpest::None).collect();
    // Surpluses are finite, so any two can be compared.
    let order = |a: &Row, b: &Row| size_of(b).sharpest.partial_cmp(&size_of(a).sharpest).unwrap_or(Ordering::Equal);
    ranked.sort_by(|a, b| order(a, b).then(a.row.cmp(&b.row)));
    let (mut chosen, mut tokens) = (HashMap::new(), 0);
    let mut take = |row: &Row, most: usize, is_sampled: bool| {
        let fits = tokens + size_of(row).tokens <= most || chosen.is_empty();
        if fits && !chosen.contains_key(&row.row) {
            chosen.insert(row.row, is_sampled);
            tokens += size_of(row).tokens;
        }
    };
    for row in ranked {
        take(row, (most_tokens as f64 * RANKED_SHARE) as usize, false);
    }
    for i in random::order(SEED, rows.len() as u32) {
        take(rows[i as usize], most_tokens, true);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::quadrants::{Thresholds, resolve};
    use crate::table::testing::{Example, token, write_parts};
    use crate::table::{ROWS_FILE, TOKENS_FILE, finish, read_rows};

    /// Row `i` has `i + 1` tokens; every third row has a conflict, sharper in later rows.
    fn run(folder: &std::path::Path, n_rows: u32) -> (Vec<PathBuf>, Vec<Row>) {
        let example = |row: u32| {
            let mut tokens: Vec<_> = (0..row + 1).map(|i| token(i, 0.9, 0.3)).collect();
            if row.is_multiple_of(3) {
                tokens[0] = token(99, 0.2 / (row + 1) as f32, 0.1);
            }
            Example { row, source: "a", tokens }
        };
        let examples: Vec<Example> = (0..n_rows).map(example).collect();
        write_parts(folder, &[&examples]);
        let fixed = resolve(Thresholds::Fixed, &[]).unwrap();
        finish(folder, &fixed.key(), |logprob, entropy, tail| fixed.label(logprob, entropy, tail)).unwrap();
        (vec![folder.join(TOKENS_FILE)], read_rows(&folder.join(ROWS_FILE)).unwrap())
    }

    #[test]
    fn a_small_run_is_shown_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (tables, rows) = run(folder.path(), 6);
        let shown = shown(&tables, &rows, &HashSet::new(), 21).unwrap();
        assert_eq!(
            shown.rows.iter().map(|row| (row.row.row, row.is_sampled, row.n_tokens)).collect::<Vec<_>>(),
            [(0, false, 1), (1, false, 2), (2, false, 3), (3, false, 4), (4, false, 5), (5, false, 6)]
        );
        assert_eq!((shown.tokens.len(), shown.of_rows, &shown.numbers[..]), (21, 6, &[[0, 5]][..]));
        // Rows without a token have numbers, too, and a sample has gaps.
        let numbered = [2, 3, 9].map(|row| Row { row, ..Row::default() });
        assert_eq!(super::shown(&tables, &numbered, &HashSet::new(), 21).unwrap().numbers, [[2, 3], [9, 9]]);
        assert_eq!(shown.texts[&99], "t99");
        assert_eq!(shown.texts[&7], "t7", "the first choice of every token");
    }

    #[test]
    fn of_a_large_run_the_sharpest_rows_and_a_sample() {
        let folder = tempfile::tempdir().unwrap();
        let (tables, rows) = run(folder.path(), 12);
        // There are 78 tokens. Four fifths of 30 are 24: of the rows with conflicts (9, 6, 3, 0 by rank), all 10 + 7 + 4 + 1 tokens fit.
        let shown = shown(&tables, &rows, &HashSet::new(), 30).unwrap();
        let of = |sampled| shown.rows.iter().filter(|row| row.is_sampled == sampled).map(|row| row.row.row).collect::<Vec<_>>();
        assert_eq!(of(false), [0, 3, 6, 9]);
        assert!(!of(true).is_empty() && shown.tokens.len() <= 30 && shown.of_rows == 12, "{:?}", of(true));
        assert_eq!(shown.rows.iter().map(|row| row.n_tokens).sum::<usize>(), shown.tokens.len());
        // A single row that exceeds the limit is still shown.
        assert_eq!(super::shown(&tables, &rows[9..10], &HashSet::new(), 3).unwrap().rows.len(), 1);
        let numbers = shown.rows.iter().map(|row| row.row.row).collect();
        assert_eq!(rows_shown(&tables, &rows, &HashSet::new(), 30).unwrap(), numbers);
        // Rows with only conflicts of form come last: 9 and 6 here. After 3 and 0, there is room for only the first of them.
        let of_form = HashSet::from([(9, 0), (6, 0)]);
        let shown = super::shown(&tables, &rows, &of_form, 19).unwrap();
        let ranked = shown.rows.iter().filter(|row| !row.is_sampled).map(|row| row.row.row).collect::<Vec<_>>();
        assert_eq!(ranked, [0, 3, 9]);
        let shown = shown_of(&tables, &rows, &HashSet::from([2, 5, 99])).unwrap();
        assert_eq!(shown.rows.iter().map(|row| (row.row.row, row.n_tokens)).collect::<Vec<_>>(), [(2, 3), (5, 6)]);
        assert_eq!((shown.tokens.len(), shown.of_rows), (9, 12));
    }
}
