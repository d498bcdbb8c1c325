//! A finished run of scores with its data at hand again: what the tables say by number stands in the texts of these rows.

use std::path::{Path, PathBuf};

use super::folders;
use super::score::{RUN_FILE, RunRecord, open_data, read_record};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::table::{ROWS_FILE, Row, read_rows};

pub(crate) struct Reopened {
    pub folder: PathBuf,
    pub record: RunRecord,
    pub dataset: Dataset,
    /// rows.parquet: a row for each record that was read, in their order.
    pub rows: Vec<Row>,
}

impl Reopened {
    /// Opens the folder of a finished run. `data` are the files, in their order, where they have moved; else they are looked for.
    pub(crate) fn open(folder: &Path, data: &[String]) -> Result<Reopened> {
        if !folders::holds_scores(folder) {
            return Err(folders::not_scores(folder));
        }
        let record = read_record(&folder.join(RUN_FILE))?;
        let dataset = open_data(folder, &record, data)?;
        let rows = read_rows(&folder.join(ROWS_FILE))?;
        Ok(Reopened { folder: folder.to_owned(), record, dataset, rows })
    }
}
