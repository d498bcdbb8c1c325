//! General-capability scores of a model, and what changed between two.
//!
//! ```text
//! tasks.rs      files -> items that ask for the log-likelihood of continuations, or for an answer; benchmarks/ by name; named.rs chooses
//! fewshot.rs    answered examples before the items
//! asking.rs     items -> texts, plain or through a chat template
//! requests.rs   texts -> token sequences, cut where lm-evaluation-harness cuts
//! score.rs      sequences -> engine -> log-likelihoods
//! write.rs      prompts, and answers that the engine has written -> verdicts, by written/
//! metrics.rs    log-likelihoods and verdicts -> metrics, as sums over items
//! rows.rs       a user's own rows -> cross-entropy of their answers
//! samples.rs    samples.parquet; answers.rs: answers.parquet
//! results.rs    scores.json
//! compare.rs    two evaluations of the same items -> paired differences
//! harness.rs    the sample files of lm-evaluation-harness as one side of that
//! divergence.rs  two models on the same text -> how far apart they are
//! retention.rs  a model before and runs from it -> gains on the target, losses in general
//! ```

pub mod answers;
pub mod asking;
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
pub mod rows;
pub mod samples;
pub mod score;
pub mod tasks;
pub mod write;
pub mod written;
