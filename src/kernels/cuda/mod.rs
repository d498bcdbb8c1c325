//! The kernels on an NVIDIA GPU: memory, launches, products, and the operations of this room for numbers that lie there.
//!
//! ```text
//! library.rs    NVIDIA's libraries, opened at run time
//! compile.rs    the .cu files, which stand beside the CPU kernels -> machine code
//! device.rs     the GPU: memory, copies, launches, times; array.rs numbers there
//! product.rs    `x W^T` by cuBLASLt; shape.rs what its algorithm depends on
//! operations.rs rows, norms, gates: checks, then launches; attention.rs for attention, head.rs for logits and what is kept of them
//! experts.rs    the same for experts: who computes which tokens; grouped.rs their products; delta.rs for the gated delta rule
//! step_rows.rs  where the tokens of a step of writing stand in its batch
//! pages.rs      keys and values of sequences that are being written, and the attention of their last tokens; states.rs what the delta
//!               rule remembers of them
//! hosted.rs     the same for tensors of the host
//! ```
//!
//! All work goes into one stream, so that it happens in the order of the calls; the host does not wait for it unless it says so
//! ([`Device::download`], [`Pinned`]). Shapes as in the CPU kernels. What is on the device is an [`Array`]: an address, a length and a
//! number format, whose bounds every operation checks before it launches. Kernels run for compute capability 8.0 and later.

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
