//! Fetches the tables for the checks from two packages of the Python index: Punkt's English model, which NLTK itself downloads
//! from elsewhere, and the profiles of langdetect 1.0.9, whose own package is not a wheel.
//!
//! That copy of the profiles lacks the Chinese characters in Korean's profile and is otherwise identical, so that only texts with
//! such characters may get a different language.

use super::tools::Tools;
use crate::error::{Context, Result};
use crate::fetch::Progress;
use crate::fetch::wheel::{self, Wheel};

/// MIT; the NLTK data in it have their own licences.
const PUNKT: Wheel = Wheel {
    what: "the model of sentences for IFEval",
    requirement: "llama-index-core==0.14.25",
    wheel_bytes: 11_928_254,
    member: None,
    file: "llama_index_core-0.14.25-py3-none-any.whl",
    bytes: 11_928_254,
    sha256: "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1",
    instead: "leave `ifeval` out",
};
const PUNKT_FOLDER: &str = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english";

/// langdetect's profiles of languages, Apache-2.0.
const LANGDETECT: Wheel = Wheel {
    what: "the profiles of languages for IFEval",
    requirement: "langdetect-py==1.1.1",
    wheel_bytes: 1_003_504,
    member: None,
    file: "langdetect_py-1.1.1-py3-none-any.whl",
    bytes: 1_003_504,
    sha256: "f31023136acc964992b9257d83af04f13116b89f026139d52da3567e462e38ee",
    instead: "leave `ifeval` out",
};

/// Fetches both packages, unless they are cached, and reads the tables.
pub(super) fn tools(progress: Progress) -> Result<Tools> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let punkt = wheel::fetch(&PUNKT, progress)?;
    wheel::unpack_members(&punkt, |name| name.starts_with(PUNKT_FOLDER), folder.path())?;
    let languages = wheel::fetch(&LANGDETECT, progress)?;
    let is_table = |name: &str| name.starts_with("langdetect/profiles/") || name == "langdetect/utils/messages.properties";
    wheel::unpack_members(&languages, is_table, folder.path())?;
    Tools::open(&folder.path().join(PUNKT_FOLDER), &folder.path().join("langdetect"))
}
