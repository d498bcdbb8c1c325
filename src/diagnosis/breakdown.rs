//! Sums tokens, loss and gradient by quadrant over a subset of the tokens, with intervals for how much their shares vary from row to row.

use serde::{Deserialize, Serialize};

use super::by_quadrant::ByQuadrant;
use crate::json::null_is_infinite;
use crate::stats::{ClusterSums, Scale, Term, share};

/// Sums over a subset of the supervised tokens. Shares are of the totals given here, and 0 where a total is 0.
///
/// `.._ci95` are 95 % intervals with whole rows as the sampling unit and the thresholds taken as given; they are absent where fewer than two rows
/// contribute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Breakdown {
    /// Rows with a token in the subset.
    #[serde(default)]
    pub rows: u64,
    /// Tokens in the subset.
    pub tokens: u64,
    /// Sum of -ln p, nats.
    pub loss: f64,
    /// Sum of the L2 norms of the cross-entropy gradient with respect to the logits.
    pub grad: f64,
    /// exp of the mean loss per token; null in the file where that exceeds the range of a number.
    #[serde(deserialize_with = "null_is_infinite")]
    pub perplexity: f64,
    /// Mean entropy over the vocabulary, nats per token.
    pub mean_entropy: f64,
    /// Mean of -ln p - H, nats per token: 0 on the model's own text, positive on text that surprises the model.
    pub mean_surplus: f64,
    /// The sums by quadrant.
    pub quadrants: ByQuadrant<Cell>,
}

/// One quadrant of a [`Breakdown`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Tokens in the quadrant.
    pub tokens: u64,
    /// Their share of all tokens.
    pub token_share: f64,
    /// Its 95 % interval.
    #[serde(default)]
    pub token_share_ci95: Option<[f64; 2]>,
    /// Sum of -ln p, nats.
    pub loss: f64,
    /// Its share of all loss.
    pub loss_share: f64,
    /// Its 95 % interval.
    #[serde(default)]
    pub loss_share_ci95: Option<[f64; 2]>,
    /// Sum of the gradient norms.
    pub grad: f64,
    /// Its share of all gradient.
    pub grad_share: f64,
    /// Its 95 % interval.
    #[serde(default)]
    pub grad_share_ci95: Option<[f64; 2]>,
}

/// Sums by quadrant.
pub(super) type Quarters = [Quarter; 4];

#[derive(Clone, Copy, Default)]
pub(super) struct Quarter {
    /// Tokens.
    pub tokens: u64,
    /// Sum of -ln p, nats.
    pub loss: f64,
    /// Sum of the gradient norms.
    pub grad: f64,
    /// Sum of the entropies, nats.
    pub entropy: f64,
}

/// Sums over a subset of the tokens, and over the rows that contain them.
#[derive(Clone, Default)]
pub(super) struct Tally {
    /// The sums over all rows.
    pub whole: Quarters,
    /// The sums over the row being read.
    row: Quarters,
    rows: u64,
    /// For each quadrant, how its shares of tokens, of loss and of gradient vary from row to row.
    shares: [[ClusterSums; 3]; 4],
}

impl Tally {
    /// Adds a token, and returns whether it is the first of its row.
    pub(super) fn add(&mut self, quadrant: usize, loss: f64, grad: f64, entropy: f64) -> bool {
        let is_first = self.row.iter().all(|quarter| quarter.tokens == 0);
        for quarter in [&mut self.whole[quadrant], &mut self.row[quadrant]] {
            quarter.tokens += 1;
            quarter.loss += loss;
            quarter.grad += grad;
            quarter.entropy += entropy;
        }
        is_first
    }

    /// Ends the row, whose shares count as one observation.
    pub(super) fn close_row(&mut self) {
        let row = std::mem::take(&mut self.row);
        let of = |quarter: &Quarter| [quarter.tokens as f64, quarter.loss, quarter.grad];
        let whole = row.iter().map(of).fold([0.0; 3], |sum, own| std::array::from_fn(|i| sum[i] + own[i]));
        self.rows += 1;
        for (shares, quarter) in self.shares.iter_mut().zip(&row) {
            for ((share, numerator), denominator) in shares.iter_mut().zip(of(quarter)).zip(whole) {
                share.add(Term { numerator, denominator });
            }
        }
    }

    pub(super) fn breakdown(&self) -> Breakdown {
        let Tally { whole: quarters, rows, shares, .. } = self;
        let tokens: u64 = quarters.iter().map(|quarter| quarter.tokens).sum();
        let sum = |of: fn(&Quarter) -> f64| quarters.iter().map(of).sum::<f64>();
        let (loss, grad, entropy) = (sum(|quarter| quarter.loss), sum(|quarter| quarter.grad), sum(|quarter| quarter.entropy));
        let n = tokens as f64;
        Breakdown {
            rows: *rows,
            tokens,
            loss,
            grad,
            perplexity: share(loss, n).exp(),
            mean_entropy: share(entropy, n),
            mean_surplus: share(loss - entropy, n),
            quadrants: ByQuadrant::from_fn(|quadrant| {
                let quarter = quarters[quadrant.index()];
                let [token_share_ci95, loss_share_ci95, grad_share_ci95] =
                    shares[quadrant.index()].map(|share| share.ci95(Scale::LogOdds));
                Cell {
                    tokens: quarter.tokens,
                    token_share: share(quarter.tokens as f64, n),
                    token_share_ci95,
                    loss: quarter.loss,
                    loss_share: share(quarter.loss, loss),
                    loss_share_ci95,
                    grad: quarter.grad,
                    grad_share: share(quarter.grad, grad),
                    grad_share_ci95,
                }
            }),
        }
    }
}
