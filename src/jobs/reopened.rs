//! A finished run of scores with its data at hand again: what the tables say by number stands in the texts of these rows.
//!
//! Each row of the data is matched with its row of rows.parquet, so that a span of a token can
//! be shown in its turn, or decided about, without a doubt about which text it counts in.

use std::path::{Path, PathBuf};

use super::folders;
use super::score::{RUN_FILE, RunRecord, open_data, read_record};
use crate::dataset::{Chosen, Dataset, Example};
use crate::error::{Error, Result};
use crate::table::{ROWS_FILE, Row, read_rows};

pub(crate) struct Reopened {
    pub folder: PathBuf,
    pub record: RunRecord,
    pub dataset: Dataset,
    /// Which records of the data were read.
    pub chosen: Chosen,
    /// rows.parquet: a row for each record that was read, in their order.
    pub rows: Vec<Row>,
}

/// A row of the run, and what stands in the data there.
pub(crate) struct DataRow<'a> {
    pub row: &'a Row,
    /// `None` where the record could not be read; the row says why it was skipped. The spans of tokens count bytes of its turns' contents.
    pub example: Option<Example>,
}

impl Reopened {
    /// Opens the folder of a finished run. `data` are the files, in their order, where they have moved; else they are looked for.
    pub(crate) fn open(folder: &Path, data: &[String]) -> Result<Reopened> {
        if !folders::holds_scores(folder) {
            return Err(folders::not_scores(folder));
        }
        let record = read_record(&folder.join(RUN_FILE))?;
        let dataset = open_data(folder, &record, data)?;
        let chosen = dataset.choose(record.choice())?;
        let rows = read_rows(&folder.join(ROWS_FILE))?;
        Ok(Reopened { folder: folder.to_owned(), record, dataset, chosen, rows })
    }

    /// The rows of the run in their order, each with its text.
    pub(crate) fn data_rows(&self) -> impl Iterator<Item = Result<DataRow<'_>>> {
        let mut records = self.dataset.chosen(&self.chosen);
        let mut rows = self.rows.iter();
        std::iter::from_fn(move || match (records.next(), rows.next()) {
            (None, None) => None,
            (Some(Err(error)), _) => Some(Err(error)),
            (Some(Ok(record)), Some(row)) if (record.row, record.place.line) == (row.row, row.line) => {
                Some(Ok(DataRow { row, example: record.example.ok() }))
            }
            (Some(Ok(record)), row) => {
                rows = [].iter();
                let found = row.map_or("no more row".to_owned(), |row| format!("row {}, {}:{}", row.row, row.path, row.line));
                let error = Error::new(format!("expected row {} in the tables of the run, found {found}", record.row));
                Some(Err(self.unlike(error.at_line(&*record.place.path, record.place.line))))
            }
            (None, Some(row)) => {
                rows = [].iter();
                Some(Err(self.unlike(Error::new(format!("the data end before row {} of the tables of the run", row.row)))))
            }
        })
    }

    fn unlike(&self, error: Error) -> Error {
        error.cure(format!("Score the data again: the tables of {} are not of these rows.", self.folder.display()))
    }
}
