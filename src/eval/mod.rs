//! General-capability scores of a model, and what changed between two.
//!
//! ```text
//! tasks.rs      files -> items that ask for the log-likelihood of continuations; benchmarks/ by name; named.rs chooses
//! fewshot.rs    answered examples before the items
//! requests.rs   items -> token sequences, cut where lm-evaluation-harness cuts
//! score.rs      sequences -> engine -> log-likelihoods
//! metrics.rs    log-likelihoods -> metrics, as sums over items
//! samples.rs    samples.parquet
//! results.rs    scores.json
//! compare.rs    two evaluations of the same items -> paired differences
//! harness.rs    the sample files of lm-evaluation-harness as one side of that
//! divergence.rs  two models on the same text -> how far apart they are
//! retention.rs  a model before and runs from it -> gains on the target, losses in general
//! ```
//!
//! Left out: generation.

pub mod benchmarks;
pub mod compare;
pub mod divergence;
pub mod fewshot;
pub mod harness;
pub mod metrics;
pub mod named;
pub mod requests;
pub mod results;
pub mod retention;
pub mod samples;
pub mod score;
pub mod tasks;
