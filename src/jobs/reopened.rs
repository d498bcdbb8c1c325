//! Reopens a finished score run together with its data, so that the texts behind the numbers of its tables can be read.

use std::path::{Path, PathBuf};

use super::folders;
use super::score::{RunRecord, open_data, read_record};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::table::{ROWS_FILE, Row, read_rows};

pub(crate) struct Reopened {
    pub folder: PathBuf,
    pub record: RunRecord,
    pub dataset: Dataset,
    /// rows.parquet: a row for each record that was read, in data order.
    pub rows: Vec<Row>,
}

impl Reopened {
    /// Opens the folder of a finished run. `data` are the data files in their order, if they have moved; otherwise they are searched for.
    pub(crate) fn open(folder: &Path, data: &[String]) -> Result<Reopened> {
        if !folders::holds_scores(folder) {
            return Err(folders::not_scores(folder));
        }
        let record = read_record(folder)?;
        let dataset = open_data(folder, &record, data)?;
        let rows = read_rows(&folder.join(ROWS_FILE))?;
        Ok(Reopened { folder: folder.to_owned(), record, dataset, rows })
    }
}
