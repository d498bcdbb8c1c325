//! Measures how well each ranking finds conflicts that were planted on purpose: AUROC, and precision and recall at 1 % of the tokens.
//!
//! A demo row carries the byte spans of a changed fact, digit or argument. Every ranking is measured in two ways:
//!
//! - `any_token`: a token is a hit if its bytes overlap a span. This is simple but harsh: after the first wrong token, the model
//!   often expects the rest of the wrong word, and no ranking should call that rest surprising.
//! - `first_token`: the first token of a span is a hit, and its other tokens are ignored. The text first departs from what the model
//!   would have said at the first overlapping token, so this is the fairer measure and the one to choose a ranking by.
//!
//! Precision over rows is left out. Spans in unsupervised text are not measured, but counted in `spans_without_tokens`. The scores of all tokens are
//! kept in memory and sorted, since planted data sets are small.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::quadrants::Resolved;
use super::ranking::Ranking;
use crate::dataset::PlantedSpan;
use crate::error::Result;
use crate::stats::{Scale, cluster_interval};
use crate::table::{Column, read_chunks};

/// The share of all tokens that a person would read.
const LOOKED_AT: f64 = 0.01;

/// How well every ranking finds the planted spans.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankingQuality {
    /// The number of planted spans.
    pub spans: usize,
    /// Spans that no supervised token overlaps: they were cut off, or are in an unsupervised turn.
    pub spans_without_tokens: usize,
    /// The number of supervised tokens.
    pub tokens: usize,
    /// The number of rows with supervised tokens.
    #[serde(default)]
    pub rows: usize,
    /// The scores of each ranking.
    pub rankings: Vec<RankingScores>,
}

/// How well one ranking finds the spans.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RankingScores {
    /// The ranking.
    pub ranking: Ranking,
    /// The scores if every token of a span is a hit.
    pub any_token: Scores,
    /// The scores if only the first token of each span is a hit.
    pub first_token: Scores,
}

/// The scores of one ranking. Numbers are absent if there are no hits, or nothing but hits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The number of tokens that are hits.
    pub hits: usize,
    /// The probability that a hit scores above a token that is no hit, with ties counted half (Mann and Whitney, 1947).
    pub auroc: Option<f64>,
    /// Its 95 % interval, with whole rows as the sampling unit.
    #[serde(default)]
    pub auroc_ci95: Option<[f64; 2]>,
    /// The share of hits among the top 1 % of the tokens (rounded up). Tokens tied at the cut count with their average.
    pub precision_at_1_percent: Option<f64>,
    /// The share of the hits that are in the top 1 %.
    pub recall_at_1_percent: Option<f64>,
}

impl RankingQuality {
    /// The ranking with the best AUROC on first tokens; the earlier one of equals.
    pub fn best(&self) -> Option<Ranking> {
        let auroc = |scores: &RankingScores| scores.first_token.auroc.unwrap_or(f64::NEG_INFINITY);
        self.rankings
            .iter()
            .filter(|scores| scores.first_token.auroc.is_some())
            .reduce(|best, scores| if auroc(scores) > auroc(best) { scores } else { best })
            .map(|scores| scores.ranking)
    }
}

/// Measures the rankings. `planted` holds each span with its row.
pub fn ranking_quality(tables: &[PathBuf], planted: &[(u32, PlantedSpan)], thresholds: &Resolved) -> Result<RankingQuality> {
    let mut spans_of_turn: HashMap<(u32, u16), Vec<usize>> = HashMap::new();
    for (i, (row, span)) in planted.iter().enumerate() {
        spans_of_turn.entry((*row, span.turn)).or_default().push(i);
    }
    let mut scores: [Vec<f32>; 6] = Default::default();
    let mut marks = Vec::new();
    // Row numbers without gaps, one per token.
    let (mut rows, mut last_row, mut n_rows) = (Vec::new(), None, 0u32);
    let mut is_found = vec![false; planted.len()];
    for chunk in read_chunks(tables, &COLUMNS) {
        let mut chunk = chunk?;
        chunk.retain_finite();
        for i in 0..chunk.len() {
            for (ranking, scores) in Ranking::ALL.iter().zip(&mut scores) {
                scores.push(ranking.score(&chunk, i, thresholds));
            }
            let mut mark = Mark::Other;
            for span_idx in spans_of_turn.get(&(chunk.row[i], chunk.turn[i])).into_iter().flatten() {
                let span = planted[*span_idx].1;
                if chunk.begin[i] < span.end && span.begin < chunk.end[i] {
                    // The tokens of a row come in text order, so the first one seen is the first of the span.
                    if !std::mem::replace(&mut is_found[*span_idx], true) {
                        mark = Mark::First;
                    } else if mark == Mark::Other {
                        mark = Mark::Rest;
                    }
                }
            }
            marks.push(mark);
            n_rows += u32::from(last_row.replace(chunk.row[i]) != Some(chunk.row[i]));
            rows.push(n_rows - 1);
        }
    }
    let rankings = Ranking::ALL.iter().zip(&scores).map(|(ranking, scores)| {
        let all = scores.iter().copied().zip(&marks).zip(&rows);
        let any = all.clone().map(|((score, mark), row)| Token { score, row: *row, is_hit: *mark != Mark::Other }).collect();
        let first = all.filter(|((_, mark), _)| **mark != Mark::Rest);
        let first = first.map(|((score, mark), row)| Token { score, row: *row, is_hit: *mark == Mark::First }).collect();
        RankingScores { ranking: *ranking, any_token: score_ranking(any), first_token: score_ranking(first) }
    });
    Ok(RankingQuality {
        spans: planted.len(),
        spans_without_tokens: is_found.iter().filter(|is_found| !**is_found).count(),
        tokens: marks.len(),
        rows: n_rows as usize,
        rankings: rankings.collect(),
    })
}

const COLUMNS: [Column; 8] =
    [Column::Row, Column::Turn, Column::Begin, Column::End, Column::Logprob, Column::Entropy, Column::Tail, Column::Varentropy];

/// How a token relates to the planted spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    First,
    /// A later token of a span.
    Rest,
    Other,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    score: f32,
    row: u32,
    is_hit: bool,
}

/// Computes AUROC from the ranks, and precision and recall at the head of the ranking.
fn score_ranking(mut tokens: Vec<Token>) -> Scores {
    tokens.sort_unstable_by(|a, b| b.score.total_cmp(&a.score));
    let n = tokens.len();
    let hits = tokens.iter().filter(|token| token.is_hit).count();
    let others = n - hits;
    if hits == 0 || others == 0 {
        return Scores { hits, auroc: None, auroc_ci95: None, precision_at_1_percent: None, recall_at_1_percent: None };
    }
    let looked_at = ((LOOKED_AT * n as f64).ceil() as usize).max(1);
    let n_rows = tokens.iter().map(|token| token.row as usize + 1).max().unwrap_or(0);
    let mut rows = vec![RowOfPairs::default(); n_rows];
    // From the best score down, one group of equal scores at a time.
    let (mut seen, mut seen_hits) = (0, 0);
    let mut pairs_won = 0.0;
    let mut found = 0.0;
    for group in tokens.chunk_by(|a, b| a.score == b.score) {
        let group_hits = group.iter().filter(|token| token.is_hit).count();
        let group_others = group.len() - group_hits;
        let others_below = others - (seen - seen_hits) - group_others;
        pairs_won += group_hits as f64 * (others_below as f64 + group_others as f64 / 2.0);
        for token in group {
            let row = &mut rows[token.row as usize];
            if token.is_hit {
                row.hits += 1.0;
                row.others_beaten += (others_below as f64 + group_others as f64 / 2.0) / others as f64;
            } else {
                row.others += 1.0;
                row.hits_above += (seen_hits as f64 + group_hits as f64 / 2.0) / hits as f64;
            }
        }
        let room = looked_at.saturating_sub(seen).min(group.len());
        found += group_hits as f64 * room as f64 / group.len() as f64;
        seen += group.len();
        seen_hits += group_hits;
    }
    let auroc = pairs_won / (hits as f64 * others as f64);
    Scores {
        hits,
        auroc: Some(auroc),
        auroc_ci95: interval_of_auroc(auroc, hits as f64, others as f64, &rows),
        precision_at_1_percent: Some(found / looked_at as f64),
        recall_at_1_percent: Some(found / hits as f64),
    }
}

/// What a row contributes to the pairs of a hit and another token.
#[derive(Clone, Copy, Default)]
struct RowOfPairs {
    hits: f64,
    others: f64,
    /// Summed over the hits of the row: the share of all other tokens with a lower score, ties counted half.
    others_beaten: f64,
    /// Summed over the other tokens of the row: the share of all hits with a higher score, ties counted half.
    hits_above: f64,
}

/// The structural components of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), summed over rows as Obuchowski does for clustered data
/// (Biometrics 53, 1997): a row moves the AUROC by how much its hits win more than the average hit, and its other tokens lose more. Rows without a
/// hit carry little information, so Student's t counts the rows with one.
fn interval_of_auroc(auroc: f64, hits: f64, others: f64, rows: &[RowOfPairs]) -> Option<[f64; 2]> {
    let seen: Vec<&RowOfPairs> = rows.iter().filter(|row| row.hits + row.others > 0.0).collect();
    let moved =
        |row: &&RowOfPairs| (row.others_beaten - row.hits * auroc) / hits + (row.hits_above - row.others * auroc) / others;
    let squares: f64 = seen.iter().map(|row| moved(row).powi(2)).sum();
    let n = seen.len() as f64;
    let rows_with_hits = seen.iter().filter(|row| row.hits > 0.0).count() as u64;
    cluster_interval(auroc, (squares * n / (n - 1.0)).sqrt(), rows_with_hits, Scale::LogOdds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::quadrants::{Thresholds, resolve};
    use crate::table::finished_parts;
    use crate::table::testing::{Example, random, token, write_parts};

    /// Puts each token in a row of its own.
    fn tokens(of: &[(f32, bool)]) -> Vec<Token> {
        (0..).zip(of).map(|(row, &(score, is_hit))| Token { score, row, is_hit }).collect()
    }

    #[test]
    fn small_rankings_by_hand() {
        let score_ranking = |of: Vec<(f32, bool)>| score_ranking(tokens(&of));
        // Hits at ranks 1 and 3 of 4 win three of the four pairs.
        let scores = score_ranking(vec![(4.0, true), (3.0, false), (2.0, true), (1.0, false)]);
        assert_eq!(scores.auroc, Some(0.75));
        assert_eq!((scores.precision_at_1_percent, scores.recall_at_1_percent), (Some(1.0), Some(0.5)));
        // All tied: AUROC is that of a coin toss.
        let tied = score_ranking(vec![(0.0, true), (0.0, false), (0.0, false), (0.0, false)]);
        assert_eq!((tied.auroc, tied.precision_at_1_percent), (Some(0.5), Some(0.25)));
        assert_eq!(score_ranking(vec![(1.0, true)]).auroc, None);
        assert_eq!(score_ranking(vec![]).auroc, None);
        assert_eq!(score_ranking(vec![(0.0, false), (-0.0, true)]).auroc, Some(0.5), "the two zeros are equal");
    }

    #[test]
    fn equals_counting_every_pair() {
        let mut random = random(5);
        for n in [2, 10, 333] {
            // Rounding creates ties.
            let mut tokens: Vec<(f32, bool)> = (0..n).map(|_| ((random() * 12.0).round(), random() < 0.2)).collect();
            tokens[0].1 = true;
            tokens[1].1 = false;
            let mut won = 0.0;
            let mut pairs = 0.0;
            for (hit, _) in tokens.iter().filter(|token| token.1) {
                for (other, _) in tokens.iter().filter(|token| !token.1) {
                    pairs += 1.0;
                    won += if hit > other {
                        1.0
                    } else if hit == other {
                        0.5
                    } else {
                        0.0
                    };
                }
            }
            let auroc = score_ranking(super::tests::tokens(&tokens)).auroc.unwrap();
            assert!((auroc - won / pairs).abs() < 1e-12, "n {n}");
        }
    }

    #[test]
    fn an_interval_by_hand() {
        // Hits 4 and 2, others 3 and 1, each in a row of its own: the hits beat 1 and 1/2 of the others, the others have 1/2 and 1 of the hits above
        // them, and 3/4 of the pairs are won. Each row moves the AUROC by 1/8, so the error is sqrt(4/3 4/64).
        let found = score_ranking(tokens(&[(4.0, true), (3.0, false), (2.0, true), (1.0, false)])).auroc_ci95.unwrap();
        let expected = cluster_interval(0.75, (4.0f64 / 3.0 / 16.0).sqrt(), 2, Scale::LogOdds).unwrap();
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?} {expected:?}");
    }

    /// The rows differ: some are surprising throughout, some contain a plant, which stands out by 1.5 standard deviations. The nominal coverage is 95
    /// %; over 500 experiments, it has a standard deviation of 1 point.
    #[test]
    fn the_interval_covers_the_truth_as_often_as_it_says() {
        let mut random = random(31);
        let mut normal = || (0..12).map(|_| random()).sum::<f32>() - 6.0;
        let (n_rows, n_experiments) = (80, 500);
        let mut draw = |n_rows: u32| -> Vec<Token> {
            let mut tokens = Vec::new();
            for row in 0..n_rows {
                let (level, planted) = (0.7 * normal(), normal() > 0.0);
                for i in 0..12 {
                    let is_hit = planted && (i == 5 || i == 6);
                    let score = level + normal() + if is_hit { 1.5 } else { 0.0 };
                    tokens.push(Token { score, row, is_hit });
                }
            }
            tokens
        };
        let truth = score_ranking(draw(40_000)).auroc.unwrap();
        let mut covered = 0;
        for _ in 0..n_experiments {
            let [low, high] = score_ranking(draw(n_rows)).auroc_ci95.unwrap();
            covered += usize::from(low <= truth && truth <= high);
        }
        let share = covered as f64 / f64::from(n_experiments);
        println!("an AUROC of {truth:.3} is covered {share}");
        assert!((0.92..=0.975).contains(&share), "{share}");
    }

    /// Creates 199 plain tokens and a span over the bytes of two more: a sharp conflict and the rest of its word.
    fn planted_run(run: &std::path::Path) -> (Vec<PathBuf>, Vec<(u32, PlantedSpan)>) {
        let mut random = random(9);
        let mut tokens: Vec<_> = (0..201).map(|i| token(i, 0.3 + 0.6 * random(), 1.0 + random())).collect();
        tokens[100] = token(100, 0.001, 0.1);
        tokens[101] = token(101, 0.99, 0.05);
        for (i, token) in tokens.iter_mut().enumerate() {
            (token.begin, token.end) = (i as u32 * 4, i as u32 * 4 + 4);
        }
        write_parts(run, &[&[Example { row: 3, source: "a", tokens }]]);
        let tables = finished_parts(run).unwrap().into_iter().map(|part| part.tokens).collect();
        // The first byte of token 100 is the space before the word.
        let span = |turn, begin, end| (3, PlantedSpan { turn, begin, end });
        (tables, vec![span(1, 401, 408), span(0, 401, 408), span(1, 5000, 5004)])
    }

    #[test]
    fn the_rest_of_a_word_counts_only_when_asked() {
        let run = tempfile::tempdir().unwrap();
        let (tables, planted) = planted_run(run.path());
        let thresholds = resolve(Thresholds::Fixed, &[]).unwrap();
        let quality = ranking_quality(&tables, &planted, &thresholds).unwrap();
        assert_eq!((quality.spans, quality.spans_without_tokens, quality.tokens), (3, 2, 201));
        let of = |ranking| quality.rankings.iter().find(|scores| scores.ranking == ranking).unwrap();
        let surplus = of(Ranking::Surplus);
        assert_eq!((surplus.first_token.hits, surplus.any_token.hits), (1, 2));
        assert_eq!(surplus.first_token.auroc, Some(1.0));
        // The top 1 % of 200 tokens are 2 tokens, one of which can be the hit.
        assert_eq!(surplus.first_token.precision_at_1_percent, Some(0.5));
        assert_eq!(surplus.first_token.recall_at_1_percent, Some(1.0));
        // The rest of the word, which the model expects, has more surplus than most open tokens, and less loss than any.
        assert_eq!(of(Ranking::Loss).any_token.auroc, Some(0.5));
        assert_eq!(of(Ranking::Tail).any_token.auroc, Some(0.5));
        assert_eq!(of(Ranking::LowEntropy).any_token.auroc, Some(1.0));
        assert_eq!(of(Ranking::LowEntropy).first_token.auroc, Some(1.0));
        assert_eq!(of(Ranking::Quadrant).first_token.auroc, Some(1.0));
        assert_eq!(quality.best(), Some(Ranking::Surplus));
        let again: RankingQuality = serde_json::from_str(&serde_json::to_string(&quality).unwrap()).unwrap();
        assert_eq!(again, quality);
    }

    #[test]
    fn without_spans_there_is_nothing_to_say() {
        let run = tempfile::tempdir().unwrap();
        let (tables, _) = planted_run(run.path());
        let quality = ranking_quality(&tables, &[], &resolve(Thresholds::Fixed, &[]).unwrap()).unwrap();
        assert_eq!((quality.best(), quality.rankings[0].any_token.auroc), (None, None));
    }
}
