//! Which part of which run.

use serde::{Deserialize, Serialize};

use crate::dataset::Shard;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardRecord {
    #[serde(flatten)]
    pub shard: Shard,
    /// Identity of the run over all records.
    pub whole: String,
}
