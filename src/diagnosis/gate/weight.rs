//! Computes the weight of a token: a gate with its numbers filled in is a function of one token.

use serde::{Deserialize, Serialize};

use crate::kernels::TokenStatistics;
use crate::table::TokenChunk;

/// The numbers of a token that gates read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Token {
    /// ln p of the target, nats.
    pub logprob: f32,
    /// Entropy over the whole vocabulary, nats.
    pub entropy: f32,
    /// Entropy of the softmax over the K largest logits, divided by ln K.
    pub entropy_topk: f32,
    /// `sqrt(1 - 2 p + sum_v p_v^2)`
    pub grad: f32,
    /// ln p under an earlier model: the base before training, or the last snapshot. Equals `logprob` where the current model is that model.
    pub earlier: f32,
}

/// A gate with its numbers filled in: a function of one token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "function")]
pub enum Weight {
    /// 1
    One,
    /// (scale H~)^exponent
    Power { scale: f32, exponent: f32 },
    /// 1 / (1 + exp(-slope (scale H~ - center)))
    Sigmoid {
        #[serde(default = "one", skip_serializing_if = "is_one")]
        scale: f32,
        slope: f32,
        center: f32,
    },
    /// 1 if H~ > threshold, else 0
    Above { threshold: f32 },
    /// 0 if ln p <= logprob and H <= entropy, else 1
    OutsideCorner { logprob: f32, entropy: f32 },
    /// 1 if ln p under the earlier model was at least `logprob`, else 0
    Likely { logprob: f32 },
    /// p
    Probability,
    /// p^a, a = sum_v p_v^2
    Deft,
    /// max(p^(1/tau), 0.01)
    Tempered { tau: f32 },
    /// r = p / p_old if r <= most, else 0: the gradient of -min(r, most) relative to that of -ln p
    Ratio { most: f32 },
}

/// The paper's smallest weight for TALR (arXiv 2509.20758, also table 1 of 2601.02151).
const TALR_FLOOR: f32 = 0.01;

impl Weight {
    /// The weight of a token, which is the factor on its gradient: finite and non-negative for finite input with ln p <= 0 and H, H~ >= 0.
    #[inline]
    pub fn of(&self, token: &Token) -> f32 {
        match *self {
            Weight::One => 1.0,
            Weight::Power { scale, exponent } => {
                let x = scale * token.entropy_topk;
                // Multiplications for the usual exponents: exact, and ten times as fast as the general power.
                match exponent {
                    1.0 => x,
                    2.0 => x * x,
                    3.0 => x * x * x,
                    _ => x.powf(exponent),
                }
            }
            Weight::Sigmoid { scale, slope, center } => 1.0 / (1.0 + (-slope * (scale * token.entropy_topk - center)).exp()),
            Weight::Above { threshold } => f32::from(u8::from(token.entropy_topk > threshold)),
            Weight::OutsideCorner { logprob, entropy } => {
                f32::from(u8::from(!(token.logprob <= logprob && token.entropy <= entropy)))
            }
            Weight::Likely { logprob } => f32::from(u8::from(token.earlier >= logprob)),
            Weight::Probability => token.logprob.exp(),
            Weight::Deft => (token.concentration() * f64::from(token.logprob)).exp() as f32,
            Weight::Tempered { tau } => (token.logprob / tau).exp().max(TALR_FLOOR),
            Weight::Ratio { most } => {
                let ratio = (token.logprob - token.earlier).exp();
                if ratio <= most { ratio } else { 0.0 }
            }
        }
    }

    /// The loss of the token, whose gradient is this weight times that of -ln p.
    pub fn loss(&self, token: &Token) -> f64 {
        let logprob = f64::from(token.logprob);
        match *self {
            // -(p^a - 1) / a, which tends to -ln p as a tends to 0: exp_m1 keeps full precision on the way.
            Weight::Deft => match token.concentration() {
                0.0 => -logprob,
                a => -(a * logprob).exp_m1() / a,
            },
            Weight::Ratio { most } => -(logprob - f64::from(token.earlier)).exp().min(f64::from(most)),
            _ => f64::from(self.of(token)) * -logprob,
        }
    }
}

impl Token {
    /// `earlier` is absent where the current model is the earlier one.
    pub fn new(statistics: &TokenStatistics, earlier: Option<f32>) -> Token {
        let TokenStatistics { logprob, entropy, entropy_topk, grad, .. } = *statistics;
        Token { logprob, entropy, entropy_topk, grad, earlier: earlier.unwrap_or(logprob) }
    }

    /// Token `i` of a table of the base model; the chunk must have the columns that this reads.
    pub fn of_table(chunk: &TokenChunk, i: usize) -> Token {
        let logprob = chunk.logprob[i];
        let (entropy, entropy_topk, grad) = (chunk.entropy[i], chunk.entropy_topk[i], chunk.grad[i]);
        Token { logprob, entropy, entropy_topk, grad, earlier: logprob }
    }
}

impl Token {
    /// Computes `sum_v p_v^2` from the gradient norm. The norm is rounded to f32, which leaves an error of 3e-7 here, and in `p^a` as much times
    /// `-ln p`. The result is at least the target's own share.
    fn concentration(&self) -> f64 {
        let (p, grad) = (f64::from(self.logprob).exp(), f64::from(self.grad));
        (grad * grad - 1.0 + 2.0 * p).clamp((p * p).min(1.0), 1.0)
    }
}

fn one() -> f32 {
    1.0
}

// Serde passes a reference.
fn is_one(scale: &f32) -> bool {
    *scale == 1.0
}
