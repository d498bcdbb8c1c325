//! A value for each quadrant, by name.

use serde::{Deserialize, Serialize};

use crate::table::Quadrant;

/// One thing per quadrant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ByQuadrant<T> {
    pub confident_conflict: T,
    pub uncertain: T,
    pub confident: T,
    pub hesitant: T,
}

impl<T> ByQuadrant<T> {
    pub fn from_fn(mut of: impl FnMut(Quadrant) -> T) -> ByQuadrant<T> {
        ByQuadrant {
            confident_conflict: of(Quadrant::ConfidentConflict),
            uncertain: of(Quadrant::Uncertain),
            confident: of(Quadrant::Confident),
            hesitant: of(Quadrant::Hesitant),
        }
    }

    pub fn get(&self, quadrant: Quadrant) -> &T {
        match quadrant {
            Quadrant::ConfidentConflict => &self.confident_conflict,
            Quadrant::Uncertain => &self.uncertain,
            Quadrant::Confident => &self.confident,
            Quadrant::Hesitant => &self.hesitant,
        }
    }
}
