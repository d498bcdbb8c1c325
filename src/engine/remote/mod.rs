//! Statistics and answers from elsewhere: a server of vLLM or SGLang runs the model, says what it believed about the tokens of a prompt,
//! and writes answers.
//!
//! ```text
//! server.rs   one server, its protocol, its answer to a prompt; http.rs what goes over the wire
//! reply.rs    an answer, read as it comes -> positions, which ../bounds.rs makes statistics of
//! pool.rs     several servers: retries; turns.rs whose turn it is, and where; each.rs many requests at a time
//! write.rs    an answer that is written there
//! checks.rs   what is asked of them before a run
//! ```
//!
//! Token ids go there, not text: the template, the mask and the tokenizer are this program's.

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
pub use pool::{Options, Pool, Scored};
pub use server::Api;
