//! Maps (ln p, H, H~) of a token to its weight in the loss: every token loss of the literature is a pure function, listed in one table.
//!
//! The loss is `- sum_t w_t ln p_t`, with the weights as constants (no gradient through them). Plain fine-tuning is the gate that returns 1. H~ is
//! the entropy of the renormalised top K, divided by ln K, so that it lies in 0..1 (`entropy_topk`).
//!
//! | gate | weight | range | sure model (H~ = 0) | clueless model (H~ = 1) |
//! |---|---|---|---|---|
//! | `sft` | 1 | 1 | 1 | 1 |
//! | `eaft`, `eaft:power:N` | (s H~)^N | 0..s^N | 0 | s^N |
//! | `eaft:sigmoid:A,B` | 1 / (1 + exp(-A (s H~ - B))) | 0..1 | 0.006 (A 30, B 0.17) | 1 |
//! | `eaft:mask:Q` | 1 if H~ > its Q-quantile, else 0 | 0, 1 | 0 | 1 |
//! | `pilot` | 0 if both p and H are at or below their 15 % quantiles, else 1 | 0, 1 | 0 if p is low | 1 |
//! | `eaft:llama-factory` | H~ ln K / 3, K = 20 | 0..0.9986 | 0 | 0.9986 |
//! | `eaft:axolotl` | H~ ln K, K = 20 | 0..2.9957 | 0 | 2.9957 |
//! | `dft` | p | 0..1 | 0 at p = 0, 1 at p = 1 | as left |
//! | `deft` | p^a, a = sum_v p_v^2 | 0..1 | p, as `dft` (a = 1) | 1, as `sft` (a = 0) |
//! | `stm` | 0 if 1/p > 2.5 under the base model, before training, else 1 | 0, 1 | 0 if p was low | as left |
//! | `psft` | r = p / p_old if r <= 1.28, else 0 | 0..1.28 | 1 just after a snapshot | 1 just after a snapshot |
//! | `talr` | max(p^(1/tau), 0.01) | 0.01..1 | 0.01 at p = 0, 1 at p = 1 | as left |
//!
//! Here s = 1 under the normaliser `ln-k`, s = ln K / 3 under `3.0` and s = ln K under `none`. A mask compares H~ with the H~ of other tokens, so
//! that no normaliser changes it.
//!
//! [`METHODS`] is the single list of what `--method` takes: all code that parses, prints, previews, emits or documents a loss reads it. Sources
//! besides those in the list: `use_eaft_loss` in LLaMA-Factory's `trainer_utils.py`; `use_eaft` in axolotl's `monkeypatch/loss/eaft.py`.
//!
//! ```text
//! weight.rs   a gate with its numbers filled in: token -> weight and loss
//! eaft.rs     EAFT's curves, normalisers and K
//! bind.rs     the gates, what they need to know about the other tokens, and the resulting weight functions
//! methods.rs  the list of methods
//! names.rs    parsing and printing of gates and methods; refuses options that have no meaning together
//! ```

mod bind;
mod eaft;
mod methods;
mod names;
mod weight;

pub use bind::Gate;
pub use eaft::{Curve, Eaft, Normaliser};
pub use methods::{Beside, EAFT, METHODS, Method, method_names, methods_in_markdown};
pub use weight::{Token, Weight};

#[cfg(test)]
mod tests;
