//! Computes summary.json from the token table: how much of the tokens, of the loss and of the gradient falls into each quadrant, where and on which
//! tokens, and what each loss would do about it.
//!
//! One streaming pass, plus the quantile passes that some gates need. It keeps in memory the sums per source and turn, one counter per distinct
//! token, and one per distinct (target, model's first choice) pair of the conflicts. Tokens with numbers that are not finite are counted and
//! otherwise skipped. `report::markdown` and `maps` present the results.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::breakdown::{Breakdown, Quarters, Tally};
use super::by_quadrant::ByQuadrant;
use super::context::{InContext, Places, Spot};
use super::gate::Gate;
use super::gate_preview::{GatePreview, GateSums};
use super::population::{Needs, Population};
use super::quadrants::Resolved;
use super::ranking::Ranking;
use crate::error::Result;
use crate::stats::{PerRow, share};
use crate::table::{Column, Quadrant, Row, TokenChunk, read_chunks, texts_of};

/// The content of summary.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The thresholds of the quadrants.
    pub thresholds: Resolved,
    /// For the preset `groups`: tokens between the low and the high entropy, which belong to neither group of the paper.
    pub tokens_between_groups: Option<u64>,
    /// Tokens skipped because a number is infinite or NaN. Anything but 0 is a defect of the model or of a kernel.
    pub tokens_not_finite: u64,
    /// All tokens.
    pub overall: Breakdown,
    /// The tokens by source, in order of first appearance.
    pub sources: Vec<SourceBreakdown>,
    /// The tokens by turn number, ascending.
    pub turns: Vec<TurnBreakdown>,
    /// The most frequent target tokens of each quadrant.
    pub frequent_tokens: ByQuadrant<Vec<FrequentToken>>,
    /// Conflicts by target and first choice of the model, most frequent first.
    pub conflict_pairs: Vec<ConflictPair>,
    /// The examples with the most conflict mass, in descending order.
    pub conflict_rows: Vec<ConflictRow>,
    /// The tokens ranked highest by [`Ranking::DEFAULT`], whatever their quadrant.
    pub surprises: Vec<Surprise>,
    /// What each gate would do to the data.
    pub gates: Vec<GatePreview>,
}

/// The length of each list of tokens, pairs and rows.
const LIST_LENGTH: usize = 20;

/// The tokens of one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceBreakdown {
    /// The record's own `source` field, or the name of its file.
    pub source: String,
    /// Their sums.
    #[serde(flatten)]
    pub breakdown: Breakdown,
}

/// The tokens of one turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TurnBreakdown {
    /// The index of the turn in its example.
    pub turn: u16,
    /// Their sums.
    #[serde(flatten)]
    pub breakdown: Breakdown,
}

/// A target token that is frequent in a quadrant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrequentToken {
    /// Its id.
    pub token_id: u32,
    /// Its text.
    pub token: String,
    /// Occurrences in this quadrant.
    pub count: u64,
    /// `count` as a share of all occurrences of the token.
    pub share_of_token: f64,
}

/// Confident conflicts with the same target and the same first choice of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConflictPair {
    /// The id of the target.
    pub token_id: u32,
    /// The text of the target.
    pub token: String,
    /// The id of the model's first choice.
    pub top_id: u32,
    /// The text of the model's first choice.
    pub top: String,
    /// The number of such conflicts.
    pub count: u64,
    /// Sum of -ln p - H over these tokens, nats.
    pub surplus: f64,
    /// The conflict among them with the largest surplus.
    #[serde(default)]
    pub example: Option<Spot>,
}

/// An example with its conflict mass: the sum of -ln p - H over its confident conflicts. The sum of the loss alone would also include the nats that
/// the model expected to lose there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConflictRow {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// The record's own `id`, if it has one.
    pub id: Option<String>,
    /// The record's own `source` field, or the name of its file.
    pub source: String,
    /// The file as the user named it.
    pub path: String,
    /// The line of the record's first byte, counted from 1.
    pub line: u64,
    /// Its supervised tokens.
    pub supervised: u32,
    /// Its confident conflicts.
    pub conflicts: u32,
    /// Sum of -ln p over its conflicts, nats.
    pub conflict_loss: f32,
    /// Sum of -ln p - H over its conflicts, nats.
    pub conflict_surplus: f32,
    /// Its conflict with the largest surplus.
    #[serde(default)]
    pub worst: Option<Spot>,
}

/// A token that the data contains and the model did not expect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Surprise {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// The record's own `id`, if it has one.
    pub id: Option<String>,
    /// The file as the user named it.
    pub path: String,
    /// The line of the record's first byte, counted from 1.
    pub line: u64,
    /// The index of the turn in the example.
    pub turn: u16,
    /// The first byte of its place, as in a [`Spot`].
    pub begin: u32,
    /// The byte after the last one.
    pub end: u32,
    /// As of a [`Spot`].
    #[serde(default)]
    pub pos: Option<u32>,
    /// The id of the target.
    pub token_id: u32,
    /// The text of the target.
    pub token: String,
    /// The id of the model's first choice.
    pub top_id: u32,
    /// The text of the model's first choice.
    pub top: String,
    /// ln p of the target, nats.
    pub logprob: f32,
    /// Entropy over the whole vocabulary, nats.
    pub entropy: f32,
    /// Its score by [`Ranking::DEFAULT`]: the larger, the more surprising.
    pub score: f32,
    /// The sentence around the token, where the data were available.
    #[serde(default)]
    pub context: Option<InContext>,
}

impl Summary {
    /// The rows that appear in a list.
    pub fn listed_rows(&self) -> BTreeSet<u32> {
        let pairs = self.conflict_pairs.iter().filter_map(|pair| Some(pair.example.as_ref()?.row));
        let rows = self.conflict_rows.iter().map(|row| row.row);
        pairs.chain(rows).chain(self.surprises.iter().map(|surprise| surprise.row)).collect()
    }

    /// Cuts the sentences around the listed tokens of a row from the texts of its turns.
    pub fn read_contexts(&mut self, row: u32, context_of: &dyn Fn(&Spot) -> Option<InContext>) {
        let pairs = self.conflict_pairs.iter_mut().filter_map(|pair| pair.example.as_mut());
        let rows = self.conflict_rows.iter_mut().filter_map(|row| row.worst.as_mut());
        for spot in pairs.chain(rows).filter(|spot| spot.row == row) {
            spot.context = context_of(spot);
        }
        for surprise in self.surprises.iter_mut().filter(|surprise| surprise.row == row) {
            let &mut Surprise { row, turn, begin, end, pos, .. } = surprise;
            surprise.context = context_of(&Spot { row, turn, begin, end, pos, context: None });
        }
    }
}

/// The columns that a summary reads.
const COLUMNS: [Column; 14] = [
    Column::Row,
    Column::Turn,
    Column::Pos,
    Column::Source,
    Column::TokenId,
    Column::Begin,
    Column::End,
    Column::Varentropy,
    Column::Logprob,
    Column::Entropy,
    Column::EntropyTopk,
    Column::Tail,
    Column::Grad,
    Column::TopId,
];

/// Summarises the tables. `rows` is rows.parquet of the same run, sorted under the same thresholds.
pub fn summarise(tables: &[PathBuf], rows: &[Row], thresholds: &Resolved) -> Result<Summary> {
    let mut sums = TableSums::default();
    let mut gates: Vec<GateSums> = Vec::new();
    for chunk in read_chunks(tables, &COLUMNS) {
        let mut chunk = chunk?;
        sums.not_finite += chunk.retain_finite() as u64;
        if gates.is_empty() && !chunk.is_empty() {
            // Only at the first finite token, since a table without any has no quantiles but still gets a summary.
            let previewed = Gate::preview();
            let needs = previewed.iter().fold(Needs::default(), |needs, gate| needs.and(gate.needs()));
            let population = Population::of_tables(tables, &needs)?;
            for gate in previewed {
                gates.push(GateSums::new(gate, gate.bind(&population)?));
            }
        }
        let label = |i: usize| thresholds.label(chunk.logprob[i], chunk.entropy[i], chunk.tail[i]);
        let labels: Vec<Quadrant> = (0..chunk.len()).map(label).collect();
        rayon::join(|| sums.add(&chunk, &labels, thresholds), || gates.par_iter_mut().for_each(|gate| gate.add(&chunk, &labels)));
    }
    let gates = gates.into_iter().map(GateSums::finish).collect();
    sums.finish(tables, rows, thresholds, gates)
}

/// What one pass over the tokens collects.
#[derive(Default)]
struct TableSums {
    not_finite: u64,
    between: u64,
    source_names: Arc<Vec<String>>,
    sources: Vec<Tally>,
    turns: Vec<Tally>,
    /// How the shares of all tokens vary from row to row; the total sums come from the sources at the end.
    overall: Tally,
    open: PerRow<OpenRow>,
    places: Places,
    /// Occurrences of each target token by quadrant.
    tokens: HashMap<u32, [u64; 4]>,
    /// The conflicts by (target, model's first choice).
    pairs: HashMap<(u32, u32), Pair>,
    /// The worst conflict of each row with a conflict.
    worst: HashMap<u32, Worst>,
    /// The [`LIST_LENGTH`] tokens with the best score so far, best first; texts and places are filled in at the end.
    surprises: Vec<Surprise>,
}

/// How often a token is a target.
struct Occurrences {
    token_id: u32,
    in_quadrant: u64,
    in_all: u64,
}

/// Count and surplus of a set of conflicts, and the worst of them.
#[derive(Clone, Copy)]
struct Pair {
    count: u32,
    surplus: f64,
    worst: Worst,
}

/// The conflict with the largest surplus of a set; the first of equal ones.
#[derive(Clone, Copy)]
struct Worst {
    surplus: f64,
    row: u32,
    turn: u16,
    begin: u32,
    end: u32,
    pos: u32,
}

impl Worst {
    /// Returns the worse of the two conflicts, and the earlier one if they are equal.
    fn or(self, later: Worst) -> Worst {
        if self.surplus >= later.surplus { self } else { later }
    }

    fn spot(self) -> Spot {
        let Worst { row, turn, begin, end, pos, .. } = self;
        Spot { row, turn, begin, end, pos: Some(pos), context: None }
    }
}

/// The sources and turns of the row being read.
#[derive(Default)]
struct OpenRow {
    sources: Vec<usize>,
    turns: Vec<usize>,
}

impl TableSums {
    fn add(&mut self, chunk: &TokenChunk, labels: &[Quadrant], thresholds: &Resolved) {
        self.source_names = Arc::clone(&chunk.sources);
        self.sources.resize(chunk.sources.len().max(self.sources.len()), Tally::default());
        let n_turns = chunk.turn.iter().max().map_or(0, |turn| usize::from(*turn) + 1);
        self.turns.resize(n_turns.max(self.turns.len()), Tally::default());
        let place = |i: usize| self.places.next(chunk.row[i], chunk.turn[i], chunk.begin[i]..chunk.end[i]);
        let places: Vec<Range<u32>> = (0..chunk.len()).map(place).collect();
        for (i, quadrant) in labels.iter().enumerate() {
            let (logprob, entropy) = (f64::from(chunk.logprob[i]), f64::from(chunk.entropy[i]));
            let (q, loss, grad) = (quadrant.index(), -logprob, f64::from(chunk.grad[i]));
            if let Some(ended) = self.open.go_to(chunk.row[i]) {
                self.close(ended);
            }
            let (source, turn) = (chunk.source[i] as usize, usize::from(chunk.turn[i]));
            self.overall.add(q, loss, grad, entropy);
            if self.sources[source].add(q, loss, grad, entropy) {
                self.open.sums.sources.push(source);
            }
            if self.turns[turn].add(q, loss, grad, entropy) {
                self.open.sums.turns.push(turn);
            }
            self.tokens.entry(chunk.token_id[i]).or_default()[q] += 1;
            if *quadrant == Quadrant::ConfidentConflict {
                let surplus = -logprob - entropy;
                let (row, turn) = (chunk.row[i], chunk.turn[i]);
                let Range { start: begin, end } = places[i].clone();
                let own = Worst { surplus, row, turn, begin, end, pos: chunk.pos[i] };
                let ids = (chunk.token_id[i], chunk.top_id[i]);
                let pair = self.pairs.entry(ids).or_insert(Pair { count: 0, surplus: 0.0, worst: own });
                pair.count += 1;
                pair.surplus += surplus;
                pair.worst = pair.worst.or(own);
                let worst = self.worst.entry(row).or_insert(own);
                *worst = worst.or(own);
            }
        }
        self.add_surprises(chunk, &places, thresholds);
        if let Some(high) = thresholds.entropy_high {
            let between = chunk.entropy.iter().filter(|entropy| **entropy > thresholds.entropy && **entropy < high);
            self.between += between.count() as u64;
        }
    }

    fn close(&mut self, OpenRow { sources, turns }: OpenRow) {
        self.overall.close_row();
        sources.into_iter().for_each(|source| self.sources[source].close_row());
        turns.into_iter().for_each(|turn| self.turns[turn].close_row());
    }

    fn add_surprises(&mut self, chunk: &TokenChunk, places: &[Range<u32>], thresholds: &Resolved) {
        for (i, bytes) in places.iter().enumerate() {
            let score = Ranking::DEFAULT.score(chunk, i, thresholds);
            // Tokens with equal scores keep the order of the table.
            let place = self.surprises.partition_point(|surprise| surprise.score >= score);
            if place == LIST_LENGTH {
                continue;
            }
            self.surprises.truncate(LIST_LENGTH - 1);
            self.surprises.insert(
                place,
                Surprise {
                    row: chunk.row[i],
                    id: None,
                    path: String::new(),
                    line: 0,
                    turn: chunk.turn[i],
                    begin: bytes.start,
                    end: bytes.end,
                    pos: Some(chunk.pos[i]),
                    token_id: chunk.token_id[i],
                    token: String::new(),
                    top_id: chunk.top_id[i],
                    top: String::new(),
                    logprob: chunk.logprob[i],
                    entropy: chunk.entropy[i],
                    score,
                    context: None,
                },
            );
        }
    }

    fn finish(mut self, tables: &[PathBuf], rows: &[Row], thresholds: &Resolved, gates: Vec<GatePreview>) -> Result<Summary> {
        let frequent = ByQuadrant::from_fn(|quadrant| self.frequent_tokens(quadrant));
        let mut pairs: Vec<((u32, u32), Pair)> = self.pairs.iter().map(|(pair, sums)| (*pair, *sums)).collect();
        pairs.sort_unstable_by_key(|(pair, sums)| (Reverse(sums.count), *pair));
        pairs.truncate(LIST_LENGTH);

        let of_frequent = Quadrant::ALL.iter().flat_map(|quadrant| frequent.get(*quadrant)).map(|token| token.token_id);
        let of_pairs = pairs.iter().flat_map(|((target, top), _)| [*target, *top]);
        let of_surprises = self.surprises.iter().flat_map(|surprise| [surprise.token_id, surprise.top_id]);
        let ids: HashSet<u32> = of_frequent.chain(of_pairs).chain(of_surprises).collect();
        let texts = texts_of(tables, &ids)?;
        let text = |id: u32| texts.get(&id).cloned().unwrap_or_default();
        for surprise in &mut self.surprises {
            (surprise.token, surprise.top) = (text(surprise.token_id), text(surprise.top_id));
            if let Ok(found) = rows.binary_search_by_key(&surprise.row, |row| row.row) {
                surprise.id.clone_from(&rows[found].id);
                surprise.path.clone_from(&rows[found].path);
                surprise.line = rows[found].line;
            }
        }

        if let Some(ended) = self.open.end() {
            self.close(ended);
        }
        self.overall.whole = self.sources.iter().fold(Quarters::default(), |mut overall, source| {
            for (sum, quarter) in overall.iter_mut().zip(&source.whole) {
                sum.tokens += quarter.tokens;
                sum.loss += quarter.loss;
                sum.grad += quarter.grad;
                sum.entropy += quarter.entropy;
            }
            overall
        });
        Ok(Summary {
            thresholds: thresholds.clone(),
            tokens_between_groups: thresholds.entropy_high.map(|_| self.between),
            tokens_not_finite: self.not_finite,
            overall: self.overall.breakdown(),
            sources: self
                .source_names
                .iter()
                .zip(&self.sources)
                .map(|(name, sums)| SourceBreakdown { source: name.clone(), breakdown: sums.breakdown() })
                .collect(),
            turns: (0..)
                .zip(&self.turns)
                .map(|(turn, sums)| TurnBreakdown { turn, breakdown: sums.breakdown() })
                .filter(|turn| turn.breakdown.tokens > 0)
                .collect(),
            frequent_tokens: ByQuadrant::from_fn(|quadrant| {
                let tokens = frequent.get(quadrant).iter();
                tokens
                    .map(|&Occurrences { token_id, in_quadrant, in_all }| FrequentToken {
                        token_id,
                        token: text(token_id),
                        count: in_quadrant,
                        share_of_token: share(in_quadrant as f64, in_all as f64),
                    })
                    .collect()
            }),
            conflict_pairs: pairs
                .into_iter()
                .map(|((target, top), Pair { count, surplus, worst })| ConflictPair {
                    token_id: target,
                    token: text(target),
                    top_id: top,
                    top: text(top),
                    count: u64::from(count),
                    surplus,
                    example: Some(worst.spot()),
                })
                .collect(),
            conflict_rows: conflict_rows(rows, &self.worst),
            surprises: self.surprises,
            gates,
        })
    }

    /// The tokens of a quadrant, most frequent first, ties ordered by id.
    fn frequent_tokens(&self, quadrant: Quadrant) -> Vec<Occurrences> {
        let occurrences = |(id, counts): (&u32, &[u64; 4])| Occurrences {
            token_id: *id,
            in_quadrant: counts[quadrant.index()],
            in_all: counts.iter().sum(),
        };
        let mut tokens: Vec<Occurrences> = self.tokens.iter().map(occurrences).filter(|token| token.in_quadrant > 0).collect();
        tokens.sort_unstable_by_key(|token| (Reverse(token.in_quadrant), token.token_id));
        tokens.truncate(LIST_LENGTH);
        tokens
    }
}

fn conflict_rows(rows: &[Row], worst: &HashMap<u32, Worst>) -> Vec<ConflictRow> {
    let mut rows: Vec<&Row> = rows.iter().filter(|row| row.conflicts > 0).collect();
    rows.sort_by(|a, b| b.conflict_surplus.total_cmp(&a.conflict_surplus).then(a.row.cmp(&b.row)));
    rows.truncate(LIST_LENGTH);
    rows.into_iter()
        .map(|row| ConflictRow {
            row: row.row,
            id: row.id.clone(),
            source: row.source.clone(),
            path: row.path.clone(),
            line: row.line,
            supervised: row.supervised,
            conflicts: row.conflicts,
            conflict_loss: row.conflict_loss,
            conflict_surplus: row.conflict_surplus,
            worst: worst.get(&row.row).map(|worst| worst.spot()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::quadrants::{Thresholds, resolve};
    use crate::table::testing::{Example, random_examples, token, write_parts};
    use crate::table::{ROWS_FILE, TOKENS_FILE, finish, read_rows};

    fn summary_of(examples: &[Example], thresholds: Thresholds) -> Summary {
        let run = tempfile::tempdir().unwrap();
        let half = examples.len() / 2;
        write_parts(run.path(), &[&examples[..half], &examples[half..]]);
        let parts: Vec<PathBuf> = crate::table::finished_parts(run.path()).unwrap().into_iter().map(|part| part.tokens).collect();
        let resolved = resolve(thresholds, &parts).unwrap();
        finish(run.path(), &resolved.key(), |logprob, entropy, tail| resolved.label(logprob, entropy, tail)).unwrap();
        let rows = read_rows(&run.path().join(ROWS_FILE)).unwrap();
        summarise(&[run.path().join(TOKENS_FILE)], &rows, &resolved).unwrap()
    }

    fn assert_close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-6, "{value}, expected {expected}");
    }

    /// One token in each quadrant; losses are multiples of ln 2.
    fn one_of_each() -> Vec<Example> {
        let of = |id, p, entropy| token(id, p, entropy);
        vec![
            Example { row: 0, source: "a", tokens: vec![of(1, 0.125, 0.5), of(2, 0.5, 0.5)] },
            Example { row: 1, source: "b", tokens: vec![of(1, 0.0625, 2.0), of(4, 0.5, 1.5)] },
        ]
    }

    #[test]
    fn four_tokens_by_hand() {
        let summary = summary_of(&one_of_each(), Thresholds::Fixed);
        let ln_2 = 2f64.ln();
        assert_eq!(summary.overall.tokens, 4);
        assert_close(summary.overall.loss, 9.0 * ln_2);
        assert_close(summary.overall.perplexity, 2f64.powf(9.0 / 4.0));
        assert_close(summary.overall.mean_entropy, 4.5 / 4.0);
        assert_close(summary.overall.mean_surplus, (9.0 * ln_2 - 4.5) / 4.0);
        let quadrants = summary.overall.quadrants;
        assert_close(quadrants.confident_conflict.loss_share, 3.0 / 9.0);
        assert_close(quadrants.uncertain.loss_share, 4.0 / 9.0);
        assert_close(quadrants.confident.loss_share, 1.0 / 9.0);
        assert_close(quadrants.hesitant.token_share, 0.25);
        // The test tokens have gradient norm 1 - p: 0.875, 0.9375, 0.5, 0.5.
        assert_close(quadrants.confident_conflict.grad_share, 0.875 / 2.8125);

        assert_eq!(summary.sources.iter().map(|source| source.source.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_close(summary.sources[0].breakdown.loss, 4.0 * ln_2);
        assert_eq!(summary.turns.len(), 1);
        assert_eq!((summary.turns[0].turn, summary.turns[0].breakdown), (1, summary.overall));

        let conflict = &summary.frequent_tokens.confident_conflict;
        assert_eq!((conflict.len(), conflict[0].token.as_str(), conflict[0].count), (1, "t1", 1));
        assert_close(conflict[0].share_of_token, 0.5);
        let pair = &summary.conflict_pairs[0];
        assert_eq!((pair.token.as_str(), pair.top.as_str(), pair.count), ("t1", "t7", 1));
        assert_close(pair.surplus, 3.0 * ln_2 - 0.5);
        assert_eq!(pair.example.as_ref().map(|spot| (spot.row, spot.turn)), Some((0, 1)));
        let rows = &summary.conflict_rows;
        assert_eq!(rows[0].worst, pair.example);
        assert_eq!((rows.len(), rows[0].row, rows[0].line, rows[0].path.as_str()), (1, 0, 1, "data.jsonl"));
    }

    #[test]
    fn gates_of_four_tokens_by_hand() {
        let summary = summary_of(&one_of_each(), Thresholds::Fixed);
        let gate = |name: &str| summary.gates.iter().find(|gate| gate.gate == name).unwrap();
        let sft = gate("sft");
        assert_close(sft.effective_tokens, 4.0);
        assert_close(sft.mean_weight, 1.0);
        assert_eq!(sft.learning_rate_factor, Some(1.0));
        assert_eq!(sft.taken.share, ByQuadrant::default());
        // DFT: the weights are p = 1/8, 1/16, 1/2, 1/2; the losses 3, 4, 1, 1 ln 2; the gradients 1 - p.
        let dft = gate("dft");
        assert_close(dft.mean_weight, 1.1875 / 4.0);
        assert_close(dft.effective_tokens, 1.1875 * 1.1875 / (1.0 / 64.0 + 1.0 / 256.0 + 0.5));
        let grad = [0.875 / 8.0, 0.9375 / 16.0, 0.25, 0.25];
        assert_close(dft.learning_rate_factor.unwrap(), 2.8125 / grad.iter().sum::<f64>());
        assert_close(dft.kept.confident_conflict.loss, 0.125);
        assert_close(dft.share.uncertain.grad, grad[1] / grad.iter().sum::<f64>());
        assert_close(dft.taken.weight, (4.0 - 1.1875) / 4.0);
        assert_close(dft.taken.loss, (3.0 * 7.0 / 8.0 + 4.0 * 15.0 / 16.0 + 0.5 + 0.5) / 9.0);
        assert_close(dft.taken.share.confident.weight, 0.5 / 2.8125);
        assert_close(dft.taken.grad_added, 0.0);
        // The conflict and the known token have the smallest H~: the mask removes both. The pilot mask removes neither: 15 % of four tokens is one,
        // and the least probable token is not the one with the lowest entropy.
        let mask = gate("eaft:mask:0.15");
        assert_close(mask.kept.confident_conflict.loss, 0.0);
        assert_close(mask.kept.confident.loss, 0.0);
        assert_close(mask.taken.share.confident.weight, 0.5);
        assert_close(gate("pilot").taken.weight, 0.0);
        // ln 20 times H~ is the top-K entropy in nats, which equals H for these tokens: 0.5, 2, 0.5, 1.5.
        let axolotl = gate("eaft:axolotl");
        assert_close(axolotl.mean_weight, 4.5 / 4.0);
        assert_close(axolotl.taken.grad, (0.5 * 0.875 + 0.5 * 0.5) / 2.8125);
        assert_close(axolotl.taken.grad_added, (0.9375 + 0.5 * 0.5) / 2.8125);
    }

    #[test]
    fn shares_add_to_one_and_parts_to_the_whole() {
        for thresholds in ["fixed", "pilot", "groups", "tail:0.2", "p=0.4,H=2"] {
            let summary = summary_of(&random_examples(21, 0..120), thresholds.parse().unwrap());
            let over = |of: &dyn Fn(Quadrant) -> f64| Quadrant::ALL.map(of).iter().sum::<f64>();
            let breakdowns = summary.sources.iter().map(|source| &source.breakdown);
            for breakdown in breakdowns.chain(summary.turns.iter().map(|turn| &turn.breakdown)).chain([&summary.overall]) {
                assert_close(over(&|quadrant| breakdown.quadrants.get(quadrant).token_share), 1.0);
                assert_close(over(&|quadrant| breakdown.quadrants.get(quadrant).loss_share), 1.0);
                assert_close(over(&|quadrant| breakdown.quadrants.get(quadrant).grad_share), 1.0);
            }
            let of_sources: f64 = summary.sources.iter().map(|source| source.breakdown.loss).sum();
            assert_close(of_sources / summary.overall.loss, 1.0);
            let of_turns: u64 = summary.turns.iter().map(|turn| turn.breakdown.tokens).sum();
            assert_eq!(of_turns, summary.overall.tokens);
            for gate in &summary.gates {
                assert_close(over(&|quadrant| gate.share.get(quadrant).grad), 1.0);
                let taken = if gate.taken.weight > 0.0 { 1.0 } else { 0.0 };
                assert_close(over(&|quadrant| gate.taken.share.get(quadrant).weight), taken);
                let kept = over(&|quadrant| gate.kept.get(quadrant).loss * summary.overall.quadrants.get(quadrant).loss_share);
                if gate.taken.grad_added == 0.0 {
                    assert_close(kept + gate.taken.loss, 1.0);
                }
                assert!(gate.effective_tokens <= summary.overall.tokens as f64 * (1.0 + 1e-12));
            }
            assert_eq!(summary.tokens_between_groups.is_some(), thresholds == "groups");
            let text = serde_json::to_string(&summary).unwrap();
            let again: Summary = serde_json::from_str(&text).unwrap();
            assert_eq!(again.thresholds, summary.thresholds);
            assert_eq!(again.overall.tokens, summary.overall.tokens);
        }
    }

    #[test]
    fn the_labels_of_the_table_are_those_of_the_summary() {
        let run = tempfile::tempdir().unwrap();
        write_parts(run.path(), &[&random_examples(22, 0..50)]);
        let resolved = resolve(Thresholds::Fixed, &[]).unwrap();
        finish(run.path(), &resolved.key(), |logprob, entropy, tail| resolved.label(logprob, entropy, tail)).unwrap();
        let tables = [run.path().join(TOKENS_FILE)];
        let rows = read_rows(&run.path().join(ROWS_FILE)).unwrap();
        let summary = summarise(&tables, &rows, &resolved).unwrap();
        let mut counts = [0; 4];
        for chunk in read_chunks(&tables, &[Column::Quadrant]) {
            chunk.unwrap().quadrant.iter().for_each(|quadrant| counts[quadrant.index()] += 1);
        }
        assert_eq!(counts, Quadrant::ALL.map(|quadrant| summary.overall.quadrants.get(quadrant).tokens));
        let of_rows: u64 = rows.iter().map(|row| u64::from(row.conflicts)).sum();
        assert_eq!(of_rows, counts[0]);
    }

    #[test]
    fn tokens_that_are_not_numbers_are_counted_and_left_out() {
        let mut examples = one_of_each();
        let whole = summary_of(&examples, Thresholds::Fixed);
        let mut broken = token(9, 0.5, f32::NAN);
        broken.statistics.grad = f32::INFINITY;
        examples[0].tokens.insert(1, broken);
        let summary = summary_of(&examples, Thresholds::Fixed);
        assert_eq!(summary.tokens_not_finite, 1);
        assert_eq!(summary.overall, whole.overall);
        assert_eq!(summary.gates.len(), whole.gates.len());
    }

    #[test]
    fn nothing_scored_is_a_summary_of_zeros() {
        let summary = summary_of(&[Example { row: 0, source: "a", tokens: vec![] }], Thresholds::Fixed);
        assert_eq!((summary.overall.tokens, summary.overall.perplexity, summary.gates.len()), (0, 1.0, 0));
    }
}
