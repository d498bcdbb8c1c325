//! Defines the options with which data files are read.

use super::format::Format;
use super::mapping::FieldMap;
use super::roles::RoleMap;

/// The options for reading files; the default detects everything.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Forces the format instead of detecting it file by file.
    pub format: Option<Format>,
    /// Builds the fields of a known format from other columns.
    pub mapping: FieldMap,
    /// The user's own names of roles.
    pub roles: RoleMap,
    /// Whether a bad row ends the reading.
    pub strict: bool,
}
