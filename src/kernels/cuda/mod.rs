//! The kernels on an NVIDIA GPU: memory, launches, products, and the operations of `kernels` on arrays there.
//!
//! ```text
//! library.rs    NVIDIA's libraries, opened at run time
//! compile.rs    compiles the .cu files, which are next to the CPU kernels, to machine code
//! device.rs     the GPU: memory, copies, launches, timing; array.rs numbers there
//! product.rs    `x W^T` by cuBLASLt; shape.rs what determines its algorithm
//! operations.rs rows, norms, gates: checks, then launches; attention.rs for attention, head.rs for logits and their reductions
//! experts.rs    the same for experts: which expert computes which tokens; grouped.rs their products; delta.rs for the gated delta rule
//! step_rows.rs  where the tokens of a decoding step are in its batch
//! pages.rs      the KV cache of sequences being generated, and the attention of their last tokens; states.rs the delta rule's states
//!               of them
//! hosted.rs     the same operations for tensors of the host
//! ```
//!
//! All work is enqueued on one stream and runs in the order of the calls; the host only waits where this is documented
//! ([`Device::download`], [`Pinned`]). Shapes are those of the CPU kernels. Data on the device is an [`Array`]: an address, a length
//! and a number format, whose bounds every operation checks before it launches. The kernels require compute capability 8.0 or later.

mod array;
mod attention;
mod compile;
mod delta;
mod device;
mod experts;
mod grouped;
mod head;
pub mod hosted;
mod library;
mod operations;
mod pages;
mod product;
mod shape;
mod states;
mod step_rows;
#[cfg(test)]
mod tests;

pub use array::{Array, Indices, arena_bytes};
pub use attention::{AttentionPlan, PrepareOptions, RotaryTables};
pub use delta::{DeltaArrays, DeltaPlan};
pub use device::{Arena, Buffer, Device, Event, Pinned, is_there, profile};
pub use experts::{RouterOptions, Routing, routing_bytes};
pub use grouped::ExpertWeights;
pub use head::{HeadRoom, STATISTICS_WORDS, SUMS_WORDS, draw_words, head_chunk, statistics_of_words};
pub use pages::{DEVICE_PAGE, LastRoom, PagedKeys, StepLists, StepPlan};
pub use product::Weight;
pub use shape::{Rows, TILE};
pub use states::{KeptStates, StatesLists, StatesPlan};
pub use step_rows::StepRows;
