//! The products of experts, each for all experts in one launch: the host side of grouped.cu.

use std::sync::Arc;

use super::array::Argument::{F32, Pointer, U32};
use super::array::{Argument, Array};
use super::compile::Source;
use super::device::{Buffer, Device};
use super::experts::{Routing, RowsOfTile};
use super::hosted::upload_words;
use super::operations::whole_rows;
use super::product::Weight;
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::gated::{Activation, ClampedSwiglu};

/// The weights `[N, K]` of all experts of a layer, for one of their products.
pub struct ExpertWeights {
    /// Kept alive as long as the table of their addresses.
    weights: Vec<Arc<Weight>>,
    /// The address of each weight, two words each.
    pub(super) addresses: Buffer,
    /// Whether all addresses are multiples of 16 bytes.
    aligned: bool,
    dtype: Stored,
    out_features: usize,
    in_features: usize,
}

/// The tile of a kernel in grouped.cu: `Sums` and their constants there.
struct Tiling {
    /// The rows of a weight that a block reads.
    columns: usize,
    threads: u32,
    shared_bytes: usize,
}

impl Tiling {
    fn new(rows: RowsOfTile, dtype: Stored) -> Tiling {
        let (columns, row_bytes, stages) = match rows {
            RowsOfTile::Few => (64, 128, 6),
            RowsOfTile::Many => (128, 64, 4),
        };
        let threads = match (rows, dtype) {
            (RowsOfTile::Few, Stored::F32) => 64,
            (RowsOfTile::Many, Stored::F32) => 256,
            (_, Stored::Bf16) => 128,
        };
        let rows = rows.number();
        // The stages of the factors, whose memory is reused for the sums of gates and up-projections.
        let shared_bytes = (stages * (rows + columns) * row_bytes).max(4 * rows * (columns + 8));
        Tiling { columns, threads, shared_bytes }
    }
}

impl ExpertWeights {
    /// The weights of one layer's experts, in order.
    pub fn new(device: &'static Device, weights: Vec<Arc<Weight>>) -> Result<ExpertWeights> {
        let first = weights.first().ok_or_else(|| Error::new("a router without experts"))?;
        let (dtype, out_features, in_features) = (first.dtype(), first.out_features(), first.in_features());
        let (mut words, mut aligned) = (Vec::new(), true);
        for weight in &weights {
            if (weight.dtype(), weight.out_features(), weight.in_features()) != (dtype, out_features, in_features) {
                return Err(Error::new(format!(
                    "experts of one layer differ: {out_features} x {in_features} in {dtype}, and {} x {} in {}",
                    weight.out_features(),
                    weight.in_features(),
                    weight.dtype()
                )));
            }
            let address = weight.array()?.address;
            words.extend([address as u32, (address >> 32) as u32]);
            aligned &= address.is_multiple_of(16);
        }
        let addresses = upload_words(device, &words)?;
        Ok(ExpertWeights { weights, addresses, aligned, dtype, out_features, in_features })
    }

    /// The format of the weights.
    pub fn dtype(&self) -> Stored {
        self.dtype
    }

    /// `K`
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Returns the number of rows of `x`, or an error if the tokens chose among another number of experts or `x` does not fit these
    /// weights.
    fn rows_of(&self, x: Array, routing: &Routing) -> Result<usize> {
        if self.weights.len() != routing.n_experts {
            return Err(Error::new(format!("{} of {} experts are there", self.weights.len(), routing.n_experts)));
        }
        x.expect("the input of experts", x.len(), self.dtype)?;
        whole_rows("the input of experts", x, self.in_features)
    }

    /// Whether all rows of `x` and of the weights can be read in units of 16 bytes.
    fn in_units(&self, x: Array) -> Argument {
        let row_bytes = self.in_features as u64 * self.dtype.size_in_bytes();
        U32(u32::from(self.aligned && x.address.is_multiple_of(16) && row_bytes.is_multiple_of(16)))
    }
}

impl Device {
    /// `y [slots, F] = activation(gate) * up` for the experts' rows of `x [T, D]`, with `weights [2F, D]`, the gate in the first `F` rows,
    /// and optional `biases [E, 2F]`.
    pub fn open_experts(
        &self,
        x: Array,
        weights: &ExpertWeights,
        biases: Option<&Buffer>,
        activation: Activation,
        routing: &Routing,
        y: Array,
    ) -> Result<()> {
        let inner = weights.out_features / 2;
        if weights.rows_of(x, routing)? < routing.tokens.end as usize {
            return Err(Error::new("the experts were chosen for more tokens than there are"));
        }
        if weights.out_features != 2 * inner {
            return Err(Error::new(format!("gate and up need an even number of rows, found {}", weights.out_features)));
        }
        y.expect("what experts open", routing.n_slots() * inner, weights.dtype)?;
        let biases = match biases {
            Some(biases) => biases.array(0, routing.n_experts * 2 * inner, Stored::F32)?.argument(),
            None => Pointer(0),
        };
        // The numbers of `Gate` in grouped.cu.
        let (number, ClampedSwiglu { alpha, limit }) = match activation {
            Activation::Silu => (0, ClampedSwiglu { alpha: 0.0, limit: 0.0 }),
            Activation::GeluTanh => (1, ClampedSwiglu { alpha: 0.0, limit: 0.0 }),
            Activation::Sigmoid => (2, ClampedSwiglu { alpha: 0.0, limit: 0.0 }),
            Activation::ClampedSwiglu(clamps) => (3, clamps),
        };
        let name = match (routing.rows_of_tile, weights.dtype) {
            (RowsOfTile::Few, Stored::F32) => "open_experts_few_f32",
            (RowsOfTile::Few, Stored::Bf16) => "open_experts_few_bf16",
            (RowsOfTile::Many, Stored::F32) => "open_experts_many_f32",
            (RowsOfTile::Many, Stored::Bf16) => "open_experts_many_bf16",
        };
        let arguments = [
            Pointer(weights.addresses.address),
            x.argument(),
            routing.tokens.argument(),
            U32(weights.in_features as u32),
            weights.in_units(x),
            routing.tiles.argument(),
            biases,
            y.argument(),
            U32(inner as u32),
            U32(number),
            F32(alpha),
            F32(limit),
        ];
        let tiling = Tiling::new(routing.rows_of_tile, weights.dtype);
        let kernel = self.kernel(Source::Experts, name)?;
        let blocks = routing.n_tiles() * inner.div_ceil(tiling.columns / 2);
        // SAFETY: the tiles' slots are below `n_slots`, and `y` has a row for each; their tokens are rows of `x`, and their experts have
        // weights and biases; a block has the shared memory that it uses.
        unsafe { self.launch(kernel, (blocks, 1), tiling.threads, tiling.shared_bytes, &arguments) }
    }

    /// `y [slots, columns]` f32: columns `first ..` of `x [slots, F]` times the `weights [D, F]` of each slot's expert.
    pub fn close_experts(&self, x: Array, weights: &ExpertWeights, routing: &Routing, first: usize, y: Array) -> Result<()> {
        if weights.rows_of(x, routing)? != routing.n_slots() {
            return Err(Error::new("what experts close was not opened for the same slots"));
        }
        y.expect("what experts give", y.len(), Stored::F32)?;
        if routing.n_slots() == 0 {
            return Ok(());
        }
        let columns = y.len() / routing.n_slots();
        if columns == 0 || y.len() != columns * routing.n_slots() || first + columns > weights.out_features {
            return Err(Error::new(format!(
                "columns {first} to {} of what experts give are not there, or not for all slots",
                first + columns
            )));
        }
        let name = match (routing.rows_of_tile, weights.dtype) {
            (RowsOfTile::Few, Stored::F32) => "close_experts_few_f32",
            (RowsOfTile::Few, Stored::Bf16) => "close_experts_few_bf16",
            (RowsOfTile::Many, Stored::F32) => "close_experts_many_f32",
            (RowsOfTile::Many, Stored::Bf16) => "close_experts_many_bf16",
        };
        let arguments = [
            Pointer(weights.addresses.address),
            x.argument(),
            U32(weights.in_features as u32),
            weights.in_units(x),
            routing.tiles.argument(),
            y.argument(),
            U32(first as u32),
            U32(columns as u32),
        ];
        let tiling = Tiling::new(routing.rows_of_tile, weights.dtype);
        let kernel = self.kernel(Source::Experts, name)?;
        let blocks = routing.n_tiles() * columns.div_ceil(tiling.columns);
        // SAFETY: as above; `x` has a row for each slot, and the columns exist.
        unsafe { self.launch(kernel, (blocks, 1), tiling.threads, tiling.shared_bytes, &arguments) }
    }
}
