//! Pairs the tokens of two scorings by row and by their place in it. If both runs read the same data, one pass over both tables suffices, since they
//! are sorted by row and position. Otherwise rows are paired by their ids, in any order, and rows whose text differs are left out: a token's score
//! depends on all of the text before it, so a changed prompt would look like an effect of training. If the two runs use different templates, tokens
//! without a partner show it.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec::IntoIter;

use crate::error::{Error, Result};
use crate::format::counted;
use crate::table::{Chunks, Column, Quadrant, Row, TOKENS_FILE, TokenChunk, read_chunks, texts_of};

const COLUMNS: [Column; 11] = [
    Column::Row,
    Column::Turn,
    Column::Pos,
    Column::Source,
    Column::TokenId,
    Column::Begin,
    Column::End,
    Column::Logprob,
    Column::Entropy,
    Column::TopId,
    Column::Quadrant,
];

/// A token on one side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub row: u32,
    pub pos: u32,
    pub token_id: u32,
    pub turn: u16,
    /// Index into the source names that [`each_pair`] returns; only valid for the run before.
    pub source: u32,
    pub begin: u32,
    pub end: u32,
    pub logprob: f32,
    pub entropy: f32,
    pub top_id: u32,
    pub quadrant: Quadrant,
}

/// Which rows of two runs belong together. The page that compares two runs (`report/view/compare.js`) follows the same rule, except that it has the
/// texts: for rows whose text differs, it pairs the tokens up to the first difference, if that is in a turn, and if they stand at the same position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pairing {
    /// Rows with the same number: both runs read the same files, or nothing else identifies their rows.
    ByNumber,
    /// Some of the rows, where the runs read different files.
    Rows(Partners),
}

/// Rows that are the same in two runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partners {
    /// Row number after -> row number before.
    pub rows: HashMap<u32, u32>,
    /// Whether rows were matched by id rather than by number.
    pub by_id: bool,
    /// Rows with the same id or number whose tokens differ.
    pub changed: u64,
}

impl Pairing {
    /// Pairs the rows of runs over different files by their ids; rows without an id, or whose id is not unique, stay unpaired. If no row of a run has
    /// an id, rows are paired by number. `alike` means that both runs tokenize texts in the same way: then rows with the same text have the same
    /// fingerprint, and rows with different fingerprints are left out.
    pub fn of_other_data(before: &[Row], after: &[Row], alike: bool) -> Pairing {
        let by_id = [before, after].iter().all(|rows| rows.iter().any(|row| row.id.is_some()));
        let has_fingerprints = |rows: &[Row]| rows.iter().any(|row| row.ids_fingerprint.is_some());
        let alike = alike && has_fingerprints(before) && has_fingerprints(after);
        if !by_id && !alike {
            return Pairing::ByNumber;
        }
        let key = |row: &Row| if by_id { row.id.clone() } else { Some(row.row.to_string()) };
        let unique = |rows: &[Row]| -> HashMap<String, (u32, Option<u64>)> {
            let (mut found, mut twice) = (HashMap::new(), HashSet::new());
            for row in rows {
                if let Some(key) = key(row)
                    && found.insert(key.clone(), (row.row, row.ids_fingerprint)).is_some()
                {
                    twice.insert(key);
                }
            }
            found.retain(|key, _| !twice.contains(key));
            found
        };
        let before = unique(before);
        let mut partners = Partners { rows: HashMap::new(), by_id, changed: 0 };
        for (key, (row, fingerprint)) in unique(after) {
            let Some((own_row, own)) = before.get(&key) else { continue };
            // Rows that were not scored have no fingerprint and no tokens.
            let is_changed = alike && own.is_some_and(|own| fingerprint.is_some_and(|fingerprint| own != fingerprint));
            if is_changed {
                partners.changed += 1;
            } else {
                partners.rows.insert(row, *own_row);
            }
        }
        Pairing::Rows(partners)
    }
}

/// The numbers of tokens without a partner, and the source names of the run before.
pub(super) struct Rest {
    /// Tokens that the run after does not have.
    pub only_before: u64,
    /// Tokens that the run before does not have.
    pub only_after: u64,
    /// The names of the sources before.
    pub sources: Arc<Vec<String>>,
}

/// Visits the pairs in row order of the run before; both tokens of a pair have its row number. Takes two run folders.
///
/// Two tokens of a row form a pair if they have the same id and cover the same bytes of the same turn (for template tokens: the same position).
pub(super) fn each_pair(before: &Path, after: &Path, pairing: &Pairing, mut visit: impl FnMut(&Token, &Token)) -> Result<Rest> {
    check_vocabularies(before, after)?;
    let mut left = Rows::of(Tokens::Stream(Box::new(Stream::open(before))))?;
    let (right, mut only_after) = match pairing {
        Pairing::ByNumber => (Tokens::Stream(Box::new(Stream::open(after))), 0),
        Pairing::Rows(partners) => Tokens::held(after, &partners.rows)?,
    };
    let mut right = Rows::of(right)?;
    let (mut only_before, mut n_pairs) = (0, 0u64);
    while let Some(row) = [left.row(), right.row()].into_iter().flatten().min() {
        let [own, other] = [left.take(row)?, right.take(row)?];
        let n = pair(own, other, &mut visit);
        n_pairs += n;
        only_before += own.len() as u64 - n;
        only_after += other.len() as u64 - n;
    }
    if n_pairs == 0 {
        let why = match pairing {
            Pairing::Rows(Partners { changed: n @ 1.., by_id, .. }) => {
                let key = if *by_id { "id" } else { "number" };
                counted(
                    *n,
                    &format!("row has the same {key} and another text"),
                    &format!("rows have the same {key} and other texts"),
                )
            }
            _ => "no tokens are at the same position of the same row".to_owned(),
        };
        return Err(Error::new(format!("the two runs have no token in common: {why}")).cure("Compare runs over the same rows."));
    }
    Ok(Rest { only_before, only_after, sources: left.sources() })
}

/// Visits the pairs of a row, and returns their number.
fn pair(before: &[Token], after: &[Token], visit: &mut impl FnMut(&Token, &Token)) -> u64 {
    // With one tokenizer and one template, nothing has to be searched.
    if before.len() == after.len() && before.iter().zip(after).all(|(a, b)| a.place() == b.place()) {
        before.iter().zip(after).for_each(|(a, b)| visit(a, b));
        return before.len() as u64;
    }
    // If several tokens share a place, such as the bytes of a character, they are paired in order.
    let mut partners: HashMap<_, Vec<&Token>> = HashMap::new();
    after.iter().rev().for_each(|token| partners.entry(token.place()).or_default().push(token));
    let pairs = before.iter().filter_map(|a| Some((a, partners.get_mut(&a.place())?.pop()?)));
    pairs.map(|(a, b)| visit(a, b)).count() as u64
}

/// Returns an error if a token id stands for different texts in the two runs. Compares the ids at the beginning of both tables.
fn check_vocabularies(before: &Path, after: &Path) -> Result<()> {
    let tables = [before, after].map(|run| run.join(TOKENS_FILE));
    let ids = |table: &PathBuf| -> Result<HashSet<u32>> {
        let first = read_chunks(std::slice::from_ref(table), &[Column::TokenId]).next().transpose()?.unwrap_or_default();
        Ok(first.token_id.into_iter().collect())
    };
    let [own, other] = [ids(&tables[0])?, ids(&tables[1])?];
    let shared: HashSet<u32> = own.intersection(&other).copied().collect();
    let [own, other] = [texts_of(&tables[..1], &shared)?, texts_of(&tables[1..], &shared)?];
    let mut differing: Vec<u32> = shared.into_iter().filter(|id| own.get(id) != other.get(id)).collect();
    differing.sort_unstable();
    let Some(id) = differing.first() else { return Ok(()) };
    let text = |texts: &HashMap<u32, String>| texts.get(id).cloned().unwrap_or_default();
    Err(Error::new(format!(
        "the runs are of models with different vocabularies: token {id} is `{}` in {} and `{}` in {}",
        text(&own),
        before.display(),
        text(&other),
        after.display()
    ))
    .cure("`diagnose view` with both folders shows them side by side, by their text."))
}

/// The tokens of a run, ordered by the rows of the run before.
enum Tokens {
    Stream(Box<Stream>),
    /// Rows in another order are sorted in memory, at 48 bytes per token.
    Held(IntoIter<Token>),
}

impl Tokens {
    /// Returns the tokens with the row numbers of the run before, and the number of tokens whose rows have no partner.
    fn held(folder: &Path, rows: &HashMap<u32, u32>) -> Result<(Tokens, u64)> {
        let (mut stream, mut tokens, mut alone) = (Stream::open(folder), Vec::new(), 0);
        while let Some(token) = stream.next()? {
            match rows.get(&token.row) {
                Some(&row) => tokens.push(Token { row, ..token }),
                None => alone += 1,
            }
        }
        tokens.sort_by_key(|token| (token.row, token.pos));
        Ok((Tokens::Held(tokens.into_iter()), alone))
    }

    fn next(&mut self) -> Result<Option<Token>> {
        match self {
            Tokens::Stream(stream) => stream.next(),
            Tokens::Held(tokens) => Ok(tokens.next()),
        }
    }
}

/// The tokens of a run, grouped by row.
struct Rows {
    tokens: Tokens,
    /// The first token of the next row.
    next: Option<Token>,
    current: Vec<Token>,
}

impl Rows {
    fn of(mut tokens: Tokens) -> Result<Rows> {
        let next = tokens.next()?;
        Ok(Rows { tokens, next, current: Vec::new() })
    }

    /// The number of the next row with tokens.
    fn row(&self) -> Option<u32> {
        self.next.map(|token| token.row)
    }

    /// Returns the tokens of `row` if it is the next row, and none otherwise.
    fn take(&mut self, row: u32) -> Result<&[Token]> {
        self.current.clear();
        while let Some(token) = self.next.filter(|token| token.row == row) {
            self.current.push(token);
            self.next = self.tokens.next()?;
        }
        Ok(&self.current)
    }

    fn sources(self) -> Arc<Vec<String>> {
        match self.tokens {
            Tokens::Stream(stream) => stream.chunk.sources,
            Tokens::Held(_) => Arc::default(),
        }
    }
}

impl Token {
    /// The place of the token in its row, and its id.
    fn place(&self) -> (u16, u32, u32, u32) {
        match self.begin == self.end {
            true => (self.turn, u32::MAX, self.pos, self.token_id),
            false => (self.turn, self.begin, self.end, self.token_id),
        }
    }

    fn key(&self) -> (u32, u32, u32) {
        (self.row, self.pos, self.token_id)
    }
}

/// Reads the tokens of a table one by one.
struct Stream {
    path: PathBuf,
    chunks: Chunks,
    chunk: TokenChunk,
    at: usize,
    last: (u32, u32, u32),
}

impl Stream {
    fn open(folder: &Path) -> Stream {
        let path = folder.join(TOKENS_FILE);
        let chunks = read_chunks(std::slice::from_ref(&path), &COLUMNS);
        Stream { path, chunks, chunk: TokenChunk::default(), at: 0, last: (0, 0, 0) }
    }

    fn next(&mut self) -> Result<Option<Token>> {
        while self.at == self.chunk.len() {
            match self.chunks.next() {
                Some(chunk) => (self.chunk, self.at) = (chunk?, 0),
                None => return Ok(None),
            }
        }
        let (chunk, at) = (&self.chunk, self.at);
        let token = Token {
            row: chunk.row[at],
            pos: chunk.pos[at],
            token_id: chunk.token_id[at],
            turn: chunk.turn[at],
            source: chunk.source[at],
            begin: chunk.begin[at],
            end: chunk.end[at],
            logprob: chunk.logprob[at],
            entropy: chunk.entropy[at],
            top_id: chunk.top_id[at],
            quadrant: chunk.quadrant[at],
        };
        if token.key() < self.last {
            return Err(Error::new(format!("the table is not sorted by row and position: row {} comes too late", token.row))
                .at(&self.path)
                .cure("Compare tables as written by the program."));
        }
        self.last = token.key();
        self.at += 1;
        Ok(Some(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pairs of a row, as positions of their tokens.
    fn pairs(before: &[Token], after: &[Token]) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        let n = pair(before, after, &mut |a, b| found.push((a.pos, b.pos)));
        assert_eq!(n, found.len() as u64);
        found
    }

    #[test]
    fn no_token_is_the_partner_of_two() {
        let token = |pos: u32, begin: u32, token_id: u32| Token {
            row: 0,
            pos,
            token_id,
            turn: 1,
            source: 0,
            begin,
            end: begin + 4,
            logprob: -1.0,
            entropy: 1.0,
            top_id: 0,
            quadrant: Quadrant::Uncertain,
        };
        // Two equal bytes of one character.
        let twice = [token(3, 0, 7), token(4, 0, 7), token(5, 4, 9)];
        assert_eq!(pairs(&twice, &twice), [(3, 3), (4, 4), (5, 5)]);
        assert_eq!(pairs(&twice, &[token(6, 0, 7), token(7, 4, 9)]), [(3, 6), (5, 7)]);
        assert_eq!(pairs(&[token(6, 0, 7)], &twice), [(6, 3)]);
        let moved = [token(8, 0, 7), token(9, 0, 7), token(10, 4, 8), token(11, 8, 9)];
        assert_eq!(pairs(&twice, &moved), [(3, 8), (4, 9)]);
    }
}
