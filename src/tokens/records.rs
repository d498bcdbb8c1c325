//! Renders the records of a data set in order on all cores, a bounded number at a time.

use rayon::prelude::*;

use super::audit::{Audit, refused_strictly};
use super::render::{Rendered, Renderer};
use crate::dataset::{Chosen, Dataset, Example, Place, Record};
use crate::error::Result;

/// Records rendered at a time: enough work for all cores, in little memory.
const RENDER_CHUNK: usize = 256;

/// A record after rendering: tokens to score, or the reason why it was skipped.
pub struct Item {
    /// The index of the record over all files, from 0; bad records count.
    pub row: u32,
    /// The file, and the line of the record's first byte.
    pub place: Place,
    /// `None` if the record could not be read.
    pub example: Option<Example>,
    /// Its tokens and loss mask, or why there are none.
    pub rendered: Result<Rendered>,
}

impl Audit {
    /// Counts a rendered row and returns it. A refused row is counted and becomes `None`, or with `strict` an error.
    pub(crate) fn take(&mut self, row: u32, place: &Place, rendered: Result<Rendered>, strict: bool) -> Result<Option<Rendered>> {
        match rendered {
            Ok(rendered) => {
                self.add(row, place, &rendered.audit);
                Ok(Some(rendered))
            }
            Err(error) if strict => Err(refused_strictly(error)),
            Err(error) => {
                self.add_error(row, place, &error);
                Ok(None)
            }
        }
    }
}

/// Renders the chosen records of the data set, without the first `skip`, in order on all cores, a bounded number at a time.
pub fn rendered<'a>(
    dataset: &'a Dataset,
    renderer: &'a Renderer,
    skip: u64,
    chosen: &Chosen,
) -> impl Iterator<Item = Result<Vec<Item>>> + Send + use<'a> {
    let mut records = dataset.chosen(chosen).skip(skip as usize);
    std::iter::from_fn(move || {
        let chunk: Result<Vec<Record>> = records.by_ref().take(RENDER_CHUNK).collect();
        match chunk {
            Ok(chunk) if chunk.is_empty() => None,
            Ok(chunk) => Some(Ok(chunk.into_par_iter().map(|record| render(renderer, record)).collect())),
            Err(error) => Some(Err(error)),
        }
    })
}

fn render(renderer: &Renderer, record: Record) -> Item {
    let Record { row, place, example } = record;
    match example {
        Ok(example) => {
            let rendered = renderer.render(row, &example).map_err(|error| error.at_line(&*place.path, place.line));
            Item { row, place, example: Some(example), rendered }
        }
        Err(error) => Item { row, place, example: None, rendered: Err(error) },
    }
}
