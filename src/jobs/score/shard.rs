//! Records which shard of which run a run is.

use serde::{Deserialize, Serialize};

use crate::dataset::Shard;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardRecord {
    #[serde(flatten)]
    pub shard: Shard,
    /// The identity of the run over all records.
    pub whole: String,
}
