//! Stores one value per quadrant, by name.

use serde::{Deserialize, Serialize};

use crate::table::Quadrant;

/// One value per quadrant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ByQuadrant<T> {
    /// Low p, low H.
    pub confident_conflict: T,
    /// Low p, high H.
    pub uncertain: T,
    /// High p, low H.
    pub confident: T,
    /// High p, high H.
    pub hesitant: T,
}

impl<T> ByQuadrant<T> {
    /// Calls `of` for each quadrant.
    pub fn from_fn(mut of: impl FnMut(Quadrant) -> T) -> ByQuadrant<T> {
        ByQuadrant {
            confident_conflict: of(Quadrant::ConfidentConflict),
            uncertain: of(Quadrant::Uncertain),
            confident: of(Quadrant::Confident),
            hesitant: of(Quadrant::Hesitant),
        }
    }

    /// The value of a quadrant.
    pub fn get(&self, quadrant: Quadrant) -> &T {
        match quadrant {
            Quadrant::ConfidentConflict => &self.confident_conflict,
            Quadrant::Uncertain => &self.uncertain,
            Quadrant::Confident => &self.confident,
            Quadrant::Hesitant => &self.hesitant,
        }
    }
}
