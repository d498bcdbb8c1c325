//! The same from elsewhere: a server of vLLM or SGLang runs the model, says what it believed about the tokens of a prompt, and writes answers.
//!
//! ```text
//! server.rs   one server, its protocol, its answer to a prompt; http.rs what goes over the wire
//! reply.rs    an answer, read as it comes -> positions
//! bounds.rs   a position -> statistics, and bounds of those that the largest probabilities do not decide
//! pool.rs     several servers: turns, retries; each.rs many requests at a time
//! write.rs    an answer that is written there
//! checks.rs   what is asked of them before a run
//! ```
//!
//! Token ids go there, not text: the template, the mask and the tokenizer are this program's.

mod bounds;
mod checks;
mod each;
mod http;
mod pool;
mod reply;
mod server;
mod write;

pub use bounds::{Bounds, LEAST_TOP_K, Position, Range};
pub use checks::{Checked, Difference, compare_with_own};
pub(crate) use pool::more_than_all;
pub use pool::{Options, Pool, Scored};
pub use server::Api;
