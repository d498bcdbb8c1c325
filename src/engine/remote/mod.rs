//! Statistics and answers from remote servers: a server of vLLM or SGLang runs the model, returns log-probabilities for the tokens of a
//! prompt, and generates answers.
//!
//! ```text
//! server.rs   one server: its protocol and its answer to a prompt; http.rs the transport
//! reply.rs    parses an answer as it arrives into positions, from which ../bounds.rs computes statistics
//! pool.rs     several servers, with retries; turns.rs schedules requests; each.rs runs many at a time
//! write.rs    answers that a server generates
//! checks.rs   tests of the servers before a run
//! ```
//!
//! Requests contain token ids, not text: template, mask and tokenizer are this program's.

mod checks;
mod each;
mod http;
mod pool;
mod reply;
mod server;
mod turns;
mod write;

use super::bounds;
pub use super::bounds::LEAST_TOP_K;
pub use checks::{Checked, Difference, compare_with_own};
pub(crate) use pool::more_than_all;
pub use pool::{Given, Options, Pool, Scored};
pub use server::Api;
